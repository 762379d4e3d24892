"""`seatrial train`."""

import click

from seatrial.cli import json_option, show


@click.command()
@click.argument("recipe", required=False)
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change one value of the recipe.")
@click.option("--name", metavar="MODEL", help="Register under this name instead of the recipe's.")
@click.option("--fresh", is_flag=True, help="Start over, even where an interrupted run could be finished.")
@click.option("--list", "listing", is_flag=True, help="Show the recipes that come with Seatrial.")
@json_option
def train(
    recipe: str | None, changes: tuple[str, ...], name: str | None, *, fresh: bool, listing: bool, as_json: bool
) -> None:
    """Train a model by a recipe and register it in MLflow.

    RECIPE is one of `seatrial train --list`, or a YAML file of your own. A training that was interrupted, even killed, is
    finished by the same command.

    \b
    Examples:
      seatrial train digits-cnn
      seatrial train digits-cnn --set epochs=5 --set optimizer.learning_rate=1e-3
      seatrial train my-recipe.yaml --name my-model
    """
    if listing:
        _list(as_json=as_json)
    elif recipe is None:
        raise click.UsageError("which recipe? `seatrial train --list` shows those that come with Seatrial")
    else:
        _train(recipe, (*changes, *([f"model={name}"] if name else [])), fresh=fresh, as_json=as_json)


def _list(*, as_json: bool) -> None:
    from seatrial_training.recipe import built_in_recipes

    recipes = built_in_recipes()
    width = max(map(len, recipes))
    show(
        {name: {"description": recipe.description, "data": recipe.data} for name, recipe in recipes.items()},
        as_json=as_json,
        text=lambda: "\n".join(f"{name:<{width}}  {recipe.description}" for name, recipe in recipes.items()),
    )


def _train(name: str, changes: tuple[str, ...], *, fresh: bool, as_json: bool) -> None:
    from rich.console import Console

    from seatrial.settings import load_settings
    from seatrial_training.recipe import load_recipe

    settings = load_settings()
    recipe = load_recipe(name, changes=changes)
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{recipe.name}[/]: {recipe.description}", soft_wrap=True)

    from seatrial_training.progress import ProgressBar
    from seatrial_training.train import train

    registered = train(recipe, settings, fresh=fresh, tell=console.print, callbacks=[ProgressBar(console)])
    trained, version = registered.trained, registered.version
    score = trained.score
    show(
        {
            "model": str(version),
            "name": version.name,
            "version": version.version,
            "run_id": version.run_id,
            "metric": score.metric,
            "value": score.value,
            "rows": score.rows,
            "epochs": len(trained.epochs),
            "best_epoch": trained.best,
            "data_digest": trained.dataset.digest,
        },
        as_json=as_json,
        text=lambda: (
            f"{version}: {score.metric} {score.value:.2%} on {score.rows:,} rows of the test split\n"
            f"  everything about it: mlflow ui --backend-store-uri {settings.tracking_uri}   (run {version.run_id})\n"
            f"  next: seatrial export {version}"
        ),
    )
