"""The command line of train.py: every flag is tagged, open_clip's names mean what they mean there."""

import argparse
import json
import re
import shlex
import sys
from types import ModuleType

import pytest
from open_clip_train import params

from alip.data.manifest_schema import FORMAT
from alip.errors import UserError
from alip.train import arguments
from alip.train.arguments import FLAGS, PRESETS, options, parse_arguments, tagged
from alip.train.flags import Tag, create_parser
from alip.train.open_clip_flags import REFUSED
from tests.helpers.train_runs import ROOT

COOLDOWN = ["--lr-scheduler", "const-cooldown"]
NEEDED = ["--train-data", "x", "--output", "y"]


def parse(*words: str) -> argparse.Namespace:
    return parse_arguments([*NEEDED, *words])


def known_flags() -> set[str]:
    return {name for action in create_parser()[0]._actions for name in action.option_strings}


def test_every_flag_has_a_tag():
    refused = {name.removeprefix("--").replace("-", "_") for name in REFUSED}
    dests = {action.dest for action in create_parser()[0]._actions} - {"help"} - refused
    assert dests == FLAGS.keys()
    assert all(isinstance(flag.tag, Tag) for flag in FLAGS.values())


def test_what_is_learned_is_compared_on_a_resume():
    """The flags that enter the optimizer, the loss, the augmentation or the schedule are all part of the recipe."""
    parts = {"optimizer", "loss", "augmentation", "schedule", "state", "step"}
    numerics = {"loss_chunk_size", "precision"}
    reports = {"mismatch_column"}
    found = {flag.dest for flag in FLAGS.values() if parts & {part for part, _ in flag.to}}
    assert found - numerics - reports <= set(tagged(Tag.RECIPE))
    assert numerics <= set(tagged(Tag.NUMERICS))
    saved = arguments.fingerprint_settings(parse("--lr", "0.5"))
    assert saved["recipe"]["lr"] == 0.5 and saved["recipe"].keys() == set(tagged(Tag.RECIPE))
    assert (saved["batch_size"], saved["accum_freq"]) == (256, 1)


def test_what_a_preset_sets_may_do_nothing():
    assert parse("--preset", "alip-released", "--schedule", "cosine").cycle_beta1


def test_parts_get_their_parameters():
    args = parse("--no-text-weight", "--history-init", "first-batch", "--crop-area", "0.5", "0.9", "--wd", "0.3")
    loss = options(args, "loss")
    assert (loss["use_text_weight"], loss["use_sample_weight"], loss["history_init"]) == (False, True, None)
    assert options(args, "augmentation")["area"] == (0.5, 0.9)
    assert options(args, "optimizer")["weight_decay"] == 0.3


# Models and losses that ALIP does not train: unknown flags here.
OTHER_METHODS = ("--coca-", "--siglip", "--distill-")


def test_every_flag_of_open_clip_is_known_or_answered():
    theirs = set()
    add = argparse.ArgumentParser.add_argument

    def note(self, *names, **options):
        theirs.update(names)
        return add(self, *names, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "add_argument", note)
        params.parse_args([])
    theirs = {name for name in theirs if name.startswith("--") and not name.startswith(OTHER_METHODS)} - {"--help"}
    assert len(theirs) > 80
    assert theirs - known_flags() == set()


@pytest.fixture(autouse=True)
def wandb(monkeypatch):
    """A package of that name, which is not among the tests' own."""
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))


@pytest.mark.parametrize("words", [["--wandb", "project"], ["--report-to", "wandb"], ["--report-to", "all"]])
def test_wandb_that_is_not_installed_is_named_by_the_flag(monkeypatch, words):
    monkeypatch.setitem(sys.modules, "wandb", None)
    name = words[0] if words[0] == "--wandb" else " ".join(words)
    with pytest.raises(UserError, match=f"{name} needs the wandb package: pip install wandb"):
        parse_arguments([*NEEDED, *words])


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_flags_that_are_not_needed_answer_with_one_line(flag):
    values = ["1"] if REFUSED[flag][0] in (1, "*") else []
    with pytest.raises(UserError, match=f"^{flag}: .+") as caught:
        parse(flag, *values)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 220


def test_several_are_answered_together():
    with pytest.raises(UserError, match=r"^--local-loss, --gather-with-grad: .*; --dist-url: .*"):
        parse("--local-loss", "--dist-url", "tcp://host:1", "--lr", "1e-3", "--gather-with-grad")


def test_a_command_line_of_open_clip_is_answered_in_one_go():
    """The CC12M example of its README: each of its parts that has to change is named."""
    words = [
        *("--train-data", "/data/cc12m/cc12m-train-{0000..2175}.tar", "--train-num-samples", "10968539"),
        *("--dataset-type", "webdataset", "--batch-size", "320", "--precision", "amp", "--workers", "4"),
        *("--imagenet-val", "/data/imagenet/validation/"),
    ]
    with pytest.raises(UserError) as caught:
        parse_arguments(words)
    for part in (
        "data2rec.py --input '/data/cc12m/cc12m-train-{0000..2175}.tar'",
        "--dataset-type",
        "give --output RUN",
    ):
        assert part in str(caught.value)
    for flag in ("--train-num-samples", "--dataset-type"):
        at = words.index(flag)
        del words[at : at + 2]
    words[1] = "data/cc12m/train"
    args = parse_arguments([*words, "--name", "cc12m"])
    assert (args.precision, args.output, args.imagenet_val) == ("amp", "logs/cc12m", "/data/imagenet/validation/")


KWARGS = {"momentum": 0.8, "nesterov": True, "mode": "x"}


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--wd", "0.1"], "wd", 0.1),
        (["--weight-decay", "0.1"], "wd", 0.1),
        (["--threads", "7"], "workers", 7),
        (["--grad-clip", "3"], "grad_clip_norm", 3.0),
        (["--schedule", "constant"], "lr_scheduler", "const"),
        (["--lr-scheduler", "const-cooldown", "--epochs", "10", "--epochs-cooldown", "3"], "cooldown", 0.3),
        ([], "eps", 1e-6),
        (["--opt", "timm/lamb"], "eps", None),
        (["--opt", "timm/lamb"], "beta1", None),
        (["--opt", "timm/lamb", "--preset", "alip-released"], "beta1", None),
        (["--opt", "timm/lamb", "--preset", "alip-released"], "cycle_beta1", False),
        (["--opt-kwargs", "momentum=0.8", "nesterov=True", "mode=x"], "opt_kwargs", KWARGS),
        (["--save-frequency", "3"], "keep_epochs", 3),
        (["--delete-previous-checkpoint"], "keep", 1),
        (["--compile"], "torchcompile", "on"),
        (["--torchcompile", "off"], "torchcompile", "off"),
        ([], "torchcompile", "auto"),
        (["--quick-gelu"], "force_quick_gelu", True),
        (["--patch-dropout", "0.5"], "force_patch_dropout", 0.5),
        (["--resume", "latest"], "resume", "auto"),
        (["--precision", "amp_bfloat16"], "precision", "amp_bf16"),
        (["--log-every-n-steps", "9"], "log_every_n_steps", 9),
        (["--log-every", "9"], "log_every_n_steps", 9),
        (["--val-frequency", "2"], "eval_every", arguments.Interval(2, "epochs")),
        (["--zeroshot-frequency", "2", "--val-frequency", "2"], "eval_every", arguments.Interval(2, "epochs")),
        ([], "eval_every", arguments.Interval(1, "epochs")),
        (["--report-to", "all"], "report_to", "tensorboard,wandb"),
        (["--report-to", ""], "report_to", "none"),
        (["--wandb", "project"], "report_to", "tensorboard,wandb"),
        (["--report-to", "wandb", "--wandb-project-name", "p"], "wandb", "p"),
        (["--wandb-project-name", "p"], "wandb", None),
        (["--force-image-size", "64"], "force_image_size", 64),
        (["--force-image-size", "64", "64"], "force_image_size", 64),
        (["--image-mean", "0.5"], "image_mean", [0.5, 0.5, 0.5]),
        (["--image-std", "0.2", "0.3", "0.4"], "image_std", [0.2, 0.3, 0.4]),
        (["--image-interpolation", "bicubic"], "image_interpolation", "bicubic"),
    ],
)
def test_names_and_aliases(words, name, value):
    assert getattr(parse(*words), name) == value


def test_reports():
    for words, tensorboard, project in (
        ([], True, None),
        (["--report-to", "none"], False, None),
        (["--report-to", "wandb"], False, "alip"),
        (["--report-to", "all", "--wandb-project-name", "p"], True, "p"),
    ):
        found = options(parse(*words), "run")
        assert (found["tensorboard"], found["wandb"]) == (tensorboard, project)


def test_logs_and_name_are_the_output_folder():
    assert parse_arguments(["--train-data", "x", "--logs", "L", "--name", "N"]).output == "L/N"
    assert parse_arguments(["--train-data", "x", "--name", "N"]).output == "logs/N"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--train-data", "x"], "--output RUN, or --logs DIR --name NAME"),
        ([*NEEDED, "--name", "N"], "give one of them"),
        (["--output", "y"], "--train-data DIR/NAME"),
        ([*NEEDED, "--momentum", "0.9"], "--history-momentum"),
        ([*NEEDED, "--precision", "pure_bf16"], "amp_bf16"),
        ([*NEEDED, "--lr-scheduler", "linear"], "one-cycle, cosine, const, const-cooldown"),
        ([*NEEDED, "--epochs-cooldown", "3"], "const-cooldown"),
        ([*NEEDED, "--val-frequency", "1", "--eval-every", "5steps"], "run together"),
        ([*NEEDED, "--report-to", "mlflow"], "tensorboard, wandb, all or none"),
        ([*NEEDED, "--lr", "fast"], "--lr: should be a number"),
        ([*NEEDED, "--batch-size", "0"], "should be from 1 to"),
        ([*NEEDED, "--warmup", "inf"], "--warmup inf: .* give a fraction"),
        ([*NEEDED, "--eps", "0"], "should be at least"),
        ([*NEEDED, "--dist-timeout", "1e12"], "should be from 0.01 to 35000"),
        ([*NEEDED, "--force-image-size", "64", "32"], "square"),
        ([*NEEDED, "--image-mean", "0.5", "0.5"], "three numbers"),
        ([*NEEDED, "--image-interpolation", "random"], "DALI resizes a batch in one way"),
        ([*NEEDED, "--opt", "timm/lamb", "--cycle-beta1"], "--no-cycle-beta1"),
        ([*NEEDED, "--opt-kwargs", "momentum"], "not KEY=VALUE"),
        ([*NEEDED, "--window-shards", "3"], "belongs to --data-order shards"),
        ([*NEEDED, "--cache-size", "1GB"], "belongs to --train-data at a URL"),
        ([*NEEDED, "--lock-image-unlocked-groups", "1"], "belongs to --lock-image"),
        ([*NEEDED, "--lock-text-unlocked-layers", "1"], "belongs to --lock-text"),
        ([*NEEDED, "--schedule", "cosine", "--cycle-beta1"], "belongs to --lr-scheduler one-cycle"),
        ([*NEEDED, "--preset", "alip-released", "--beta1", "0.8"], "--beta1 belongs to --no-cycle-beta1"),
        ([*NEEDED, "--objective", "clip-text", "--gamma-pair", "3"], "--gamma-pair belongs to --objective alip"),
        ([*NEEDED, "--no-sample-weight", "--gamma-sample", "3"], "--gamma-sample belongs to --objective alip"),
        ([*NEEDED, "--objective", "clip-text", "--no-text-weight"], "--no-text-weight belongs to --objective alip"),
        ([*NEEDED, "--cooldown", "0.3"], "belongs to --lr-scheduler const-cooldown"),
        ([*NEEDED, *COOLDOWN, "--cooldown", "0.5", "--warmup", ".8"], "--warmup 0.8 and --cooldown 0.5 overlap"),
        ([*NEEDED, "--dataset-type", "webdataset"], "only rec shards are read; leave it out"),
        (["--train-data", "a/{0..9}.tar", "--name", "n"], "data2rec.py --input 'a/{0..9}.tar'"),
        ([*NEEDED, "--train-num-samples", "9"], "the manifest of the shards knows"),
        (["--dataset-type", "synthetic", "--output", "y"], "needs --train-num-samples N"),
        ([*NEEDED, "--dataset-type", "synthetic"], "neither --train-data"),
        ([*NEEDED, "--delete-previous-checkpoint", "--save-frequency", "1"], "leave --save-frequency"),
        ([*NEEDED, "--flip", "2"], "--flip: should be from 0 to 1"),
        ([*NEEDED, "--save-every", "²"], "is no interval"),
        ([*NEEDED, "--eval-every", "9" * 5000], "is no interval"),
        ([*NEEDED, "--cache-size", "9" * 400], "--cache-size"),
        ([*NEEDED, "--cache-size", "1x"], "--cache-size: '1x' is no size: write 100GB"),
        (
            [*NEEDED, "--lr-scheduler", "const-cooldown", "--epochs-cooldown", "1", "--cooldown", ".9"],
            "leave one of them",
        ),
        ([*NEEDED, "--delete-previous-checkpoint", "--keep", "3"], "leave --keep out"),
        ([*NEEDED, "--siglip"], "open_clip trains this one"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_arguments(words)
    assert "\n" not in str(caught.value)


def test_a_manifest_stands_for_its_shards(tmp_path):
    """DIR/NAME.json is what `--verify` and `--show` take, too; any other JSON file is a table to build shards of."""
    manifest, table = tmp_path / "train.json", tmp_path / "table.json"
    manifest.write_text(f'{{"format": "{FORMAT}"}}')
    table.write_text("[]")
    assert parse_arguments(["--train-data", str(manifest), "--output", "y"]).train_data == str(manifest)
    with pytest.raises(UserError, match=r"data2rec\.py --input"):
        parse_arguments(["--train-data", str(table), "--output", "y"])


def test_objective_reaches_the_loss():
    assert options(parse(), "loss")["objective"] == "alip"
    assert options(parse("--objective", "clip-text"), "loss")["objective"] == "clip-text"


def test_presets_and_overrides():
    plain, released = parse(), parse("--preset", "alip-released")
    assert {name: getattr(plain, name) for name in PRESETS["alip-paper"]} == PRESETS["alip-paper"]
    differing = {n for n in vars(plain) if getattr(plain, n) != getattr(released, n)} - {"preset"}
    assert differing == {"decay_all", "cycle_beta1", "grad_clip_norm"}
    changed = parse("--preset", "alip-released", "--lr", "0.5", "--no-decay-all")
    assert (changed.lr, changed.decay_all, changed.cycle_beta1) == (0.5, False, True)


def test_arguments_can_be_written_to_run_json():
    assert json.dumps(vars(parse()), default=str)


def documented_commands():
    """(page, words) of every command line of train.py in the docs that is given there in full."""
    for page in ("training.md", "from_open_clip.md"):
        blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.S)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            found = re.search(r"\btrain\.py\s+(--.*)", line)
            if found and "…" not in line:
                yield page, shlex.split(found[1])


def test_command_lines_of_the_docs_are_valid():
    commands = list(documented_commands())
    assert {page for page, _ in commands} == {"training.md", "from_open_clip.md"}
    for _, words in commands:
        parse_arguments(words)
