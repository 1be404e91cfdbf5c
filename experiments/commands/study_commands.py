"""The commands that run several plans: `tsi run` and `tsi reproduce`."""

from pathlib import Path

from tyro.conf import Positional

from tsi.experiments.commands.scale_commands import scale
from tsi.experiments.model_options import ContinueAnyway, Dry, DryRun


def run(
    file: Positional[Path],
    out: Path | None = None,
    continue_anyway: ContinueAnyway = False,
    progress: bool = True,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Run the experiments of a Python file, which defines EXPERIMENTS; can be resumed.

    Args:
        file: see the module tsi.experiments.experiment.
        out: folder for a folder per experiment, a table that compares them and a copy
            of the file (default: results/NAME).
        continue_anyway: see `ContinueAnyway`.
        progress: show progress bars with the time left.
        dry: estimate the costs and run nothing.
    """
    from tsi.experiments.experiment import read_experiments, run_experiments

    experiments = read_experiments(file)
    folder = out or Path("results") / file.stem
    return run_experiments(
        experiments,
        folder,
        scale,
        dry=dry,
        progress=progress,
        record=file,
        continue_anyway=continue_anyway,
    )


def reproduce(
    name: Positional[str] = "list",
    small: bool = False,
    out: Path | None = None,
    only: tuple[str, ...] = (),
    served: str | None = None,
    reward: str | None = None,
    continue_anyway: ContinueAnyway = False,
    progress: bool = True,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Test a published claim, resumably; `tsi reproduce list` lists the claims.

    Args:
        name: of the claim.
        small: use the embedded models: minutes on two cores.
        out: folder (default: results/reproductions/NAME, or NAME-small).
        only: run only these experiments of the claim; all by default.
        served: address of a server that has the policies, which are then not loaded.
        reward: replaces the published reward model, for example by
            served-prm:URL,format=qwen,tokenizer=PATH.
        continue_anyway: see `ContinueAnyway`.
        progress: show progress bars with the time left.
        dry: estimate the costs and run nothing.
    """
    from tsi.experiments.experiment import change_models, run_experiments
    from tsi.experiments.reproductions import NAMES, get_reproduction

    if name == "list":
        for known_name in NAMES:
            print(
                f"{known_name:22} {get_reproduction(known_name).claim.splitlines()[0]}"
            )
        return 0
    reproduction = get_reproduction(name)
    print(reproduction.claim)
    folder = out or Path("results/reproductions") / f"{name}{'-small' * small}"
    experiments = reproduction.small if small else reproduction.full
    experiments = change_models(experiments, only, served, reward)
    is_small = small or reproduction.is_small
    return run_experiments(
        experiments,
        folder,
        scale,
        dry=dry,
        progress=progress,
        summarise=reproduction.summarise if is_small and not only else None,
        draw=reproduction.draw if is_small and not only else None,
        continue_anyway=continue_anyway,
    )
