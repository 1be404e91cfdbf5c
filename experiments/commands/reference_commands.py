"""The commands that look things up: `tsi models`, `paper` and `check`."""

from typing import TYPE_CHECKING

from tyro.conf import Positional

from tsi.errors import UnknownNameError
from tsi.experiments.model_options import check_positive

if TYPE_CHECKING:
    from tsi.models.loading.catalogue import Description


def models(
    action: Positional[str] = "list", name: Positional[str | None] = None
) -> int:
    """List families and named models, or download one: `tsi models get NAME_OR_ID`.

    Args:
        action: list or get.
        name: name of the model to download, or its id on the Hugging Face hub.
    """
    from tsi.models.loading import catalogue, download

    if action == "list":
        print(_list_models(catalogue.describe()))
    elif action == "get":
        if name is None:
            raise UnknownNameError("model", "", catalogue.MODELS)
        print(download.get(name))
    else:
        raise UnknownNameError("models action", action, ("list", "get"))
    return 0


def _list_models(models: "list[Description]") -> str:
    """The named models of each family, with their sizes and paths."""
    from tsi.models.families.architectures import FAMILIES

    lines = []
    for family in FAMILIES:
        lines.append(f"{family}:")
        for name, model, path in models:
            if model.family == family:
                size = model.weights
                text = f"{size / 1000:.1f} B" if size >= 1000 else f"{size:g} M"
                lines.append(f"  {name:19} {text:>7}  {model.about}")
                where = path or f"not downloaded yet: tsi models get {name}"
                lines.append(f"  {'':28} {where}")
    lines.append(
        "Other models of these families: their hub id (organisation/name), a folder "
        "or a .gguf file."
    )
    return "\n".join(lines)


def paper() -> int:
    """Scaling rates of the curves of arXiv 2502.01618, figure 2 (MATH500)."""
    from tsi.experiments.reports.paper_curves import paper_curves, paper_scaling_rate
    from tsi.experiments.reports.report import markdown

    lines = [["model", "against", "mean", "least", "most", "top", "accuracies %"]]
    for model in paper_curves():
        for against in ("DVTS", "WBoN"):
            rate = paper_scaling_rate(model, "PF", against)
            ends = 100 * rate.accuracies[[0, -1]]
            numbers = (rate.mean, rate.rates.min(), rate.rates.max(), rate.top)
            lines.append(
                [
                    model,
                    against,
                    *[f"{float(number):.1f}" for number in numbers],
                    f"{ends[0]:.1f} to {ends[1]:.1f}",
                ]
            )
    print(
        "Budget that each method needs, divided by the particle filter's, for equal "
        "accuracy (running maxima over budgets):"
    )
    print(markdown(lines))
    return 0


def check(
    make_sampler: Positional[str], num_particles: int = 8, num_runs: int = 20_000
) -> int:
    """Run the conformance checks on a sampler; exit code 1 if it fails.

    Args:
        make_sampler: "module:function"; the function returns a sampler.
        num_particles: number of particles N; the sampler must support it.
        num_runs: runs on each target; 20,000 detect a bias of about 2 %.
    """
    from tsi.experiments.proofs.named_sampler import report_on, verdict

    check_positive(num_particles=num_particles, num_runs=num_runs)
    report = report_on(make_sampler, num_particles, num_runs)
    print(f"{report}\n\n{verdict(report, num_particles, num_runs)}")
    return 0 if report.passed else 1
