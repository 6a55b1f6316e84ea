"""What can be refused at once: before a library is loaded, a private file opened or a hub asked for gigabytes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpzo.config.reading import has_unknown_names, parse_config
from dpzo.config.schema import RunConfig
from dpzo.config.solve import AUTO, solve_plan
from dpzo.data.tasks import find_task, is_task_file
from dpzo.errors import DpzoError
from dpzo.privacy.plan import relation_named
from dpzo.run.output import is_run, require_new
from dpzo.run.private_count import check_private_count

# A hub that has not answered by then will not make anyone happy; without a check of our own its library tries five
# times over, for half a minute.
HUB_SECONDS = 8.0


def require_options(
    tree: Mapping[str, Any], data: Sequence[str] | None, data_dir: Path | None, output: Path | None
) -> None:
    """Refuse a run that lacks options, naming all of them at once. `tree`: the groups of fields that were given."""
    if has_unknown_names(tree):
        parse_config(tree)  # a mistyped name explains why another one is missing, so it is told first
    model, records, privacy = (tree.get(group) or {} for group in ("model", "data", "privacy"))
    named = records.get("task") is not None
    chat = records.get("kind") in ("completion", "chat")
    wanted = {
        "--model NAME (a Hugging Face name or a local folder)": model.get("name") is None,
        "--data FILE (or --task NAME with --data-dir FOLDER)": not data and data_dir is None and not named,
        "--labels A,B (the declared label set)": records.get("labels") is None and not named and not chat,
        "--num-examples N (the declared number of units)": privacy.get("num_examples") is None and not named,
        "--epsilon E (or --noise-multiplier)": all(privacy.get(n) is None for n in ("epsilon", "noise_multiplier")),
        "--delta D (below 1/N, for instance 1e-5)": privacy.get("delta") is None,
        "--output FOLDER (a new folder for the run)": output is None,
    }
    missing = [option for option, absent in wanted.items() if absent]
    if len(missing) > 1:
        raise DpzoError(f"{len(missing)} options are missing: {', '.join(missing)}")
    if output is None:
        raise DpzoError("--output is missing: a new folder for the run")


def require_public_data(
    data: Sequence[str],
    data_dir: Path | None,
    tasks: Sequence[str],
    layouts: Sequence[str],
    of_own: Mapping[str, str | None],
) -> None:
    """Refuse a comparison without its records, or with an option that it would ignore.

    `of_own`: what was given for the options that belong to files of one's own.
    """
    if data and data_dir is not None:
        raise DpzoError("give one of --data and --data-dir, not both")
    if not data:
        if any(is_task_file(task) for task in tasks):
            raise DpzoError("--data is missing: the public file with the fields of your task as its columns")
        if not tasks or data_dir is None:
            raise DpzoError(
                "the records are missing: give --task NAME with --data-dir FOLDER, or your own public files by --data "
                "FILE with --eval-data FILE"
            )
        for option, value in of_own.items():
            if value is not None:
                raise DpzoError(f"{option}: is not used with --data-dir; leave it out")
        return
    if len(tasks) > 1:
        raise DpzoError("--task: only one task is possible with --data; give one, or leave it out")
    if layouts:
        raise DpzoError("--layouts: is for built-in tasks; leave it out with --data")
    if of_own["--eval-data"] is None:
        raise DpzoError(
            "--eval-data is missing: a comparison reads scores on held-out records, which no ε covers, so it is for "
            "public data only; name a public held-out file with the columns of --data"
        )
    if of_own["--eval-data"] in data and of_own["--split"] == of_own["--eval-split"]:
        raise DpzoError("--eval-data: is also given as --data; give a held-out file that is not trained on")
    if of_own["--num-examples"] is None or not of_own["--num-examples"].isdigit():
        raise DpzoError("--num-examples: declare the number of units in --data, a whole number")


def check_base(name: str) -> None:
    """`check_model` for what --base names."""
    try:
        check_model(name)
    except DpzoError as error:
        raise DpzoError(str(error).replace("--model", "--base")) from None


def check_run(
    config: RunConfig, data: Path | None, data_dir: Path | None, output: Path, *, overwrite: bool = False
) -> None:
    """Refuse what a run could not begin with. Raises DpzoError naming the option and the mend."""
    _check_task(config, data_dir)
    _check_source(config, data, data_dir)
    _check_plan(config)
    check_output(output, overwrite=overwrite)
    check_model(config.model.name, config.model.revision)


def _check_task(config: RunConfig, data_dir: Path | None) -> None:
    if config.data.task is None:
        return
    task = find_task(config.data.task)
    if config.data.layout is not None and data_dir is not None:
        task.layout(data_dir, config.data.layout)


def _check_source(config: RunConfig, data: Path | None, data_dir: Path | None) -> None:
    if data is not None and data_dir is not None:
        raise DpzoError("give one of --data and --data-dir, not both")
    if config.data.task is not None and data_dir is None and data is None:
        if isinstance(config.data.task, str):
            raise DpzoError(
                f"--data-dir is missing: the folder that holds the files of task {config.data.task}; or give --data "
                "FILE with the task's fields as its columns"
            )
        raise DpzoError("--data is missing: the file with the fields of your task as its columns")
    if config.data.task is None and data is None:
        raise DpzoError("--data is missing: a csv, tsv or jsonl file, or --task NAME with --data-dir FOLDER")


def _check_plan(config: RunConfig) -> None:
    """Build the plan with a stand-in for whatever a default or the solver will fill: it refuses what is out of range.

    No ε is solved for here, so it takes no time.
    """
    privacy = config.privacy
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        raise DpzoError("give exactly one of --epsilon and --noise-multiplier")
    relation = relation_named(privacy.relation)
    check_private_count(privacy)
    num_examples = privacy.num_examples if isinstance(privacy.num_examples, int) else None
    if num_examples is None:
        return
    batch = privacy.expected_batch_size
    searched = privacy.mechanism == AUTO and privacy.noise_multiplier is None  # the noise comes later
    solve_plan(
        num_examples=num_examples,
        expected_batch_size=max(1, num_examples // 4) if batch is None else batch,
        steps=1 if privacy.steps is None else privacy.steps,
        delta=privacy.delta,
        noise_multiplier=1.0 if privacy.noise_multiplier is None else privacy.noise_multiplier,
        clip_norm=1.0 if privacy.clip_norm is None else privacy.clip_norm,
        num_directions=1 if privacy.num_directions is None else privacy.num_directions,
        mechanism="gaussian" if searched else privacy.mechanism,
        relation=relation,
    )


def check_output(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse an --output that holds something, or that cannot be made, before any time is spent.

    With `overwrite` it may hold a run, which is to be set aside.
    """
    if not (overwrite and is_run(folder)):
        require_new(folder)
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise DpzoError(f"--output {folder}: {above} is a file, so no folder can be made in it; choose another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DpzoError(f"--output {folder}: {above} is not writable; choose another folder or change its permissions")


def check_model(name: str, revision: str | None = None) -> None:
    """Ask the hub once, within seconds, for a model that is neither a folder here nor in the hub's local cache.

    A folder's own faults are found where it is loaded. Raises DpzoError for a hub that has no such model or is out of
    reach.
    """
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        return
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    folders = "; a model of your own is given by its folder"
    try:
        if hub.try_to_load_from_cache(name, "config.json", revision=revision) is not None:
            return
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json", revision=revision), timeout=HUB_SECONDS)
    except HFValidationError:
        reason = f"is neither a folder nor a hub name such as organisation/model{folders}"
    except GatedRepoError:
        reason = (
            "the hub gives it only to those who accepted its terms; accept them there and log in with hf auth login"
        )
    except RepositoryNotFoundError:
        reason = f"the hub knows no such model (or it is private: hf auth login); check the spelling{folders}"
    except EntryNotFoundError:
        reason = "the hub's repository has no config.json at this revision; choose one that transformers can load"
    except Exception as error:
        # The library's own text is long, and what it says differs from version to version.
        reason = (
            f"no such folder here, it is not in the hub's cache, and the hub does not answer ({type(error).__name__}); "
            f"check the name and the network{folders}"
        )
    else:
        return
    raise DpzoError(f"--model {name}: {reason}")
