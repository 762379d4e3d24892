"""What one should know before using a model, as Markdown: after Mitchell et al., "Model cards for model reporting" (2019)."""

from collections.abc import Sequence

from seatrial.tensors import Signature, TensorSpec
from seatrial_training.data import Dataset
from seatrial_training.evaluation import ClassResult, Score
from seatrial_training.recipe import Recipe

MOST_CLASSES = 20


def model_card(
    recipe: Recipe,
    dataset: Dataset,
    *,
    signature: Signature,
    parameters: int,
    epochs: int,
    best: int,
    score: Score,
    classes: Sequence[ClassResult],
) -> str:
    about = dataset.about
    worst = sorted(classes, key=lambda result: result.recall)[:MOST_CLASSES]
    shown = "every class" if len(classes) <= MOST_CLASSES else f"the {MOST_CLASSES} classes it finds least often"
    return f"""\
# {recipe.model_name}

{recipe.description}.

## What it is
- Architecture `{recipe.architecture.name}`, {parameters:,} parameters; trained by the recipe `{recipe.name}`
  (seed {recipe.seed}, {epochs} epochs, weights of epoch {best}).{_ancestors(recipe)}
{_tensors("Input", signature.inputs)}
{_tensors("Output", signature.outputs)}

## Data
- {about.title}.
- Source: {about.source}. Licence: {about.licence}.
- Preparation: {about.preparation}.
- {len(dataset.train):,} rows for training, {len(dataset.validation):,} for validation, {len(dataset.test):,} for the test.
- Digest `{dataset.digest}`.

## How good it is
**{score.metric.capitalize()} {score.value:.4f}** on the {score.rows:,} rows of the test split, which took no part in training
or in choosing the weights. Of {shown}:

| class | rows | found (recall) | right when given (precision) |
|---|---|---|---|
{chr(10).join(f"| {r.label} | {r.rows} | {r.recall:.3f} | {r.precision:.3f} |" for r in worst)}

## Limits
- It knows its {len(dataset.labels)} classes and nothing else: whatever it is given, it answers with one of them.
- It was measured on data like the above. Other sources, devices or people may be harder; nothing here says how much.
- Inputs that were prepared in another way get wrong answers without an error.

## How to use it
```
seatrial export {recipe.model_name}/VERSION       # build, prove and measure variants
```
or, in Python, without Seatrial:
```python
import mlflow
model = mlflow.pytorch.load_model("models:/{recipe.model_name}/VERSION")   # a torch.export program: no code of ours or yours
```
"""


def _ancestors(recipe: Recipe) -> str:
    start = f"\n- It began with the weights of `{recipe.start}`." if recipe.start else ""
    teacher = f"\n- It learnt from the answers of `{recipe.distillation.teacher}`." if recipe.distillation else ""
    return start + teacher


def _tensors(title: str, specs: Sequence[TensorSpec]) -> str:
    return "\n".join(f"- {title} `{spec.name}`: {spec.datatype} {list(spec.shape)}" for spec in specs)
