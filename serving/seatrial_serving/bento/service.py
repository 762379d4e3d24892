"""The service of a BentoML project that Seatrial made: this file lies in the project beside the bundle.

`/v2/...` is the Open Inference Protocol, `/predict` BentoML's own way with inputs by name as nested lists,
`/seatrial/metrics` what is counted, under the same names as everywhere.
"""

from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException, InvalidArgument, ServiceUnavailable

from seatrial.errors import BadRequest, Refused, SeatrialError
from seatrial_serving.bento.host import Host
from seatrial_serving.bento.project import name

host = Host(Path(__file__).with_name("bundle"))


@bentoml.service(name=name(host.bundle))
@bentoml.asgi_app(host.v2, path="/v2")
@bentoml.asgi_app(host.metrics, path="/seatrial")  # any path below it shows the metrics
class Model:
    @bentoml.on_startup
    async def open(self) -> None:
        await host.open()

    @bentoml.on_shutdown
    async def close(self) -> None:
        await host.close()

    @bentoml.api
    async def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            return await host.predict(inputs)
        except BadRequest as error:
            raise InvalidArgument(str(error)) from error
        except Refused as error:
            raise ServiceUnavailable(str(error)) from error
        except SeatrialError as error:
            raise BentoMLException(str(error)) from error
