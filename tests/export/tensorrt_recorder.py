"""What stands in for the package `tensorrt` where it cannot be: it notes what it is told and builds nothing.

Its classes have the names of those that it stands for, and no method or attribute that those have not in 10.9, 10.16 and 11.4:
the bindings of these versions were looked at. So it shows how we drive the library, and nothing of what the library does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

Shape = tuple[int, ...]


@dataclass
class Recorder:
    """What it was told, and what it is to answer."""

    refusals: Sequence[tuple[str, str]] = ()
    """Of the parser: description and node."""
    layers: Sequence[object] = ()
    builds: bool = True
    accepts_profile: bool = True
    known_timings: bytes | None = None
    """What a timing cache must be to be taken; None takes any."""
    types: dict[str, type] = field(default_factory=dict)
    """Of the network's tensors; FP32 where nothing else is said."""

    network_flags: int = 0
    cleared: list[str] = field(default_factory=list)
    pools: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    caches: list[bytes] = field(default_factory=list)
    verbosity: str = ""

    def module(self) -> ModuleType:
        """To be put where `import tensorrt` finds it."""
        noted = self

        class Logger:
            INFO = "info"

            def __init__(self, severity: str) -> None:
                assert severity == self.INFO

        class ITensor:
            def __init__(self, name: str) -> None:
                self.name, self.dtype = name, noted.types.get(name, np.float32)

        class INetworkDefinition:
            def __init__(self) -> None:
                self.inputs: list[ITensor] = []
                self.outputs: list[ITensor] = []

            @property
            def num_inputs(self) -> int:
                return len(self.inputs)

            @property
            def num_outputs(self) -> int:
                return len(self.outputs)

            def get_input(self, index: int) -> ITensor:
                return self.inputs[index]

            def get_output(self, index: int) -> ITensor:
                return self.outputs[index]

        class ParserError:
            def __init__(self, words: str, node: str) -> None:
                self._words, self._node = words, node

            def desc(self) -> str:
                return self._words

            def node_name(self) -> str:
                return self._node

        class OnnxParser:
            def __init__(self, network: INetworkDefinition, logger: Logger) -> None:
                assert isinstance(logger, Logger)
                self._network = network

            num_errors = len(noted.refusals)

            def parse_from_file(self, model: str) -> bool:
                assert Path(model).is_absolute()
                graph = onnx.load(model).graph
                self._network.inputs += [ITensor(each.name) for each in graph.input]
                self._network.outputs += [ITensor(each.name) for each in graph.output]
                return not noted.refusals

            def get_error(self, index: int) -> ParserError:
                return ParserError(*noted.refusals[index])

        class ITimingCache:
            def __init__(self, content: bytes) -> None:
                self._content = content

            def serialize(self) -> bytes:
                return self._content + b"+timed"

        class IOptimizationProfile:
            def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:  # noqa: A002 - its own names
                noted.shapes[input] = (min, opt, max)

        class IBuilderConfig:
            profiling_verbosity = ""

            def clear_flag(self, flag: str) -> None:
                noted.cleared.append(flag)

            def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
                noted.pools[pool] = pool_size

            def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
                assert isinstance(profile, IOptimizationProfile)
                return 0 if noted.accepts_profile else -1

            def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
                noted.caches.append(serialized_timing_cache)
                return ITimingCache(serialized_timing_cache)

            def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
                assert isinstance(cache, ITimingCache)
                assert not ignore_mismatch
                return noted.known_timings is None or noted.caches[-1] in (b"", noted.known_timings)

        class Builder:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def create_network(self, flags: int = 0) -> INetworkDefinition:
                noted.network_flags = flags
                return INetworkDefinition()

            def create_builder_config(self) -> IBuilderConfig:
                return IBuilderConfig()

            def create_optimization_profile(self) -> IOptimizationProfile:
                return IOptimizationProfile()

            def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
                assert network.num_inputs
                noted.verbosity = config.profiling_verbosity
                return b"a plan" if noted.builds else None

        class EngineInspector:
            def get_engine_information(self, format: str) -> str:  # noqa: A002 - its own name
                assert format == "json"
                return json.dumps({"Layers": noted.layers})

        class ICudaEngine:
            def create_engine_inspector(self) -> EngineInspector:
                return EngineInspector()

        class Runtime:
            def __init__(self, logger: Logger) -> None:
                assert isinstance(logger, Logger)

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
                assert serialized_engine == b"a plan"
                return ICudaEngine()

        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

        class BuilderFlag:
            TF32 = "tf32"

        class ProfilingVerbosity:
            DETAILED = "detailed"

        class MemoryPoolType:
            WORKSPACE = "workspace"

        class LayerInformationFormat:
            JSON = "json"

        def nptype(trt_type: Any) -> Any:
            return trt_type

        made = ModuleType("tensorrt")
        for each in (
            Logger, INetworkDefinition, ITensor, ParserError, OnnxParser, ITimingCache, IOptimizationProfile, IBuilderConfig,
            Builder, EngineInspector, ICudaEngine, Runtime, NetworkDefinitionCreationFlag, BuilderFlag, ProfilingVerbosity,
            MemoryPoolType, LayerInformationFormat, nptype,
        ):  # fmt: skip
            setattr(made, each.__name__, each)
        return made
