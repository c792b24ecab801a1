"""Wrong command lines: each ends with one line that says what to do, and nothing is in the way."""

from pathlib import Path

import pytest
import torch

from estl.commands import main

pytestmark = pytest.mark.usefixtures("without_compiling")

SMALL = [
    *("--dataset=digits", "--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP]", "--T=3"),
    *("--data.init_args.size=16", "--data.init_args.per_class=2", "--epochs=1"),
]
GPU = torch.cuda.is_available()
HERE = "--output-dir={t}/out"
GUIDED = "ablate --config=digits_guided"

FIT = """
--dataset=nosuch                          | --dataset nosuch is not known: choose from
--arch=nosuch                             | --arch nosuch is not known: choose from
--config=nosuch                           | nosuch cannot be read: give a recipe
--config={t}/folder                       | folder cannot be read: give a recipe
--config={t}/bad.yaml                     | bad.yaml is not valid YAML at line 2: correct it
--config={t}/bytes.yaml                   | bytes.yaml is not valid YAML: correct it
--config={t}/deep.yaml                    | deep.yaml is not valid YAML: correct it
--config={t}/key.yaml                     | 'sed' is not accepted: correct it
--config={t}/value.yaml                   | learner is 3: give keys below it, or leave it out
--config={t}/list.yaml                    | list.yaml is no recipe: give a YAML file of keys
--config={t}/empty.yaml                   | empty.yaml is no recipe: give a YAML file of keys
--config={t}/file                         | file is no recipe: give a YAML file of keys
--tse --tet                               | exclude each other: leave one out
--tau-f=0.3                               | add --tse, or leave --tau-f out
--kappa=1                                 | add --tse, or leave --kappa out
--means=1                                 | add --tet, or leave --means out
--lamb=0.1 --tse                          | add --tet, or leave --lamb out
--tse --tau-f=-1                          | tau_f must be >= 0, not -1.0
--T=0                                     | --T (data.init_args.T) is 0: give a number at least 1
--data.init_args.normalize={mean:~[1],std:~[1]}            | normalize has mean [1.0], but frames
--data.init_args.normalize={mean:~[1,~1],std:~[1,~0]}      | std [1.0, 0.0]: give one of each
--T=many                                  | for --T: unable to convert "many" into int
--T                                       | --T requires an argument
--batch-size=0                            | --batch-size (data.init_args.batch_size) is 0: give
--batch-size=x                            | for --batch-size: unable to convert "x" into int
--epochs=0                                | --epochs (trainer.max_epochs) is 0: give a number
--trainer.max_epochs=null                 | --epochs (trainer.max_epochs) is null: give a number
--epochs=-5                               | --epochs (trainer.max_epochs) is -5: give a number
--lr=0                                    | --lr (learner.lr) is 0.0: give a number above 0
--lr=nan                                  | key learner.lr
--weight-decay=-1                         | --weight-decay (learner.weight_decay) is -1.0: give
--optimizer=nosuch                        | Literal['adamw', 'adam', 'sgd']. Got value: nosuch
--augment=strong                          | give none, cifar, events, or options
--augment=flip=2                          | flip must be a finite number in [0,1], not 2.0
--augment=flip=x                          | flip: Expected a <class 'float'>. Got value: x
--precision=7                             | --precision 7: give 32, or bf16 or 16 (mixed)
--precision=fp16                          | --precision fp16: give 32, or bf16 or 16 (mixed)
--precision=transformer-engine            | engine: give 32, or bf16 or 16 (mixed)
--precision=bf16-true                     | --precision bf16-true: give 32, or bf16 or 16
--trainer.precision=64                    | trainer.precision is 64: give 32, or bf16 or 16
--devices=0                               | with trainer.devices 0
--devices=-3 --trainer.accelerator=cpu    | with trainer.devices -3
--devices=x --trainer.accelerator=cpu     | trainer.devices is x: give how many, or which
--trainer.accelerator=gpu                 | trainer.accelerator gpu with trainer.devices auto: No
--trainer.accelerator=nosuch              | accelerator name: `accelerator='nosuch'`. Available
--trainer.strategy=nosuch                 | strategy name: `strategy='nosuch'`
--trainer.fast_dev_run=true               | trainer.fast_dev_run: use --dry-run, which trains two
--trainer.accumulate_grad_batches=0       | accumulate_grad_batches is 0: give a number at least 1
--trainer.max_epoch=3                     | unrecognized arguments: --trainer.max_epoch=3: correct
--trainer.gradient_clip_val=-1            | gradient_clip_val is -1: give a number at least 0
--learner.lrr=1                           | unrecognized arguments: --learner.lrr=1: correct it
--learner.warmup=-4                       | --learner.warmup is -4.0: give a number at least 0
--learner.schedule=nosuch                 | Literal['cosine', 'constant']. Got value: nosuch
--learner.part_lr={nosuch:~1}             | ['nosuch'], which no parameter belongs to
--student.init_args.layers=[AP]           | layers=('AP',) holds no convolution: add a width
--student.init_args.layerz=3              | option 'layerz' is not accepted: correct it
--student.init_args.classes=7             | is 7, but classes of Digits is 10: leave it out
--student=tests.small_students.unannotated| a function with the annotation -> nn.Module;
--student=no.such.Student                 | No module named 'no'
--supervision=estl.supervision.NoSuch     | has no attribute 'NoSuch'
--seed=x                                  | for --seed: unable to convert "x" into int
--seed=-1                                 | --seed (seed) is -1: give a number at least 0
--keep-checkpoints=0                      | --keep-checkpoints (keep_checkpoints) is 0: give a
--foo=3                                   | unrecognized arguments: --foo=3: correct it
word                                      | unrecognized arguments: word: correct it
--init-from={t}/nowhere                   | give the best*.ckpt or last.ckpt of a run
--init-from={t}/folder                    | no checkpoint {t}/folder/last.ckpt: give
--resume={t}/nowhere                      | --resume {t}/nowhere: give a run folder
--resume={t}/folder                       | --resume {t}/folder: give a run folder
--resume={t}/damaged                      | config.yaml is damaged, and no checkpoint has the
--data.init_args.size=7                   | size=7: a multiple of 8
--data.init_args.val_fraction=2           | val_fraction or test_fraction is 2.0: give a share
--data.init_args.test_fraction=0          | the test split is empty
--data.init_args.splits=nosuch            | no list nosuch: splits is a YAML or JSON file
--data.init_args.num_workers=-1           | num_workers is -1: give a number at least 0
--data.init_args.cache={t}/file           | {t}/file: File exists: give another path
--data.init_args.skip_broken=true         | needs a cache, where broken items are listed: add
--data.init_args.per_class=0              | per_class=0: class '0' has
--output-dir={t}/file                     | {t}/file is no folder: choose another --output-dir
--output-dir=/proc/nowhere/run            | /proc/nowhere: No such file or directory: give another
"""
OTHERS = f"""
fit                                                  | give --config RECIPE, or --dataset NAME
fit --dataset=digits                                 | give --config RECIPE, or --arch NAME
fit --config={{t}}/null.yaml                         | give --config RECIPE, or --arch NAME
fit --config=nmnist_tse --data-path={{t}}/folder     | point --data-path at N-MNIST
fit --config=digits_guided --teacher={{t}}/folder    | folder' is no folder of a CLIP model
fit --dataset=recordings --arch=vggsnn               | arguments are required: root
fit --dataset=recordings --arch=vggsnn --data-path={{t}}/folder                | point --data-path
fit --dataset=recordings --arch=vggsnn --data-path={{t}}/folder --window=abc   | is no time: give
fit --dataset=shards --arch=vggsnn --data-path={{t}}/folder                    | point --data-path
fit --dataset=digits --arch=spikformer --student.init_args.dim=30              | a multiple of 8
test                                                 | --ckpt requires an argument
test --ckpt={{t}}/nowhere                            | give the best*.ckpt or last.ckpt of a run
test --ckpt={{t}}/file                               | file is damaged, or cannot be read as a
test --ckpt={{t}}/folder                             | /folder is a folder: give
test --ckpt={{t}}/file --attack=nosuch               | Choose from: "fgsm", "pgd"
test --ckpt={{t}}/file --attack=fgsm --eps=x         | give a number or a fraction such as 8/255
predict --ckpt={{t}}/file                            | no files: give the recordings to classify
predict --ckpt={{t}}/nowhere x.bin                   | give the best*.ckpt or last.ckpt of a run
predict x.bin                                        | --ckpt requires an argument
export --ckpt={{t}}/file --to=nosuch {HERE}          | Choose from: "safetensors", "onnx"
export --ckpt={{t}}/file --to=onnx {HERE}            | file is damaged
export --ckpt={{t}}/file --to=onnx --samples=0 {HERE}               | --samples is 0: give a number
calibrate --ckpt={{t}}/nowhere                       | give the best*.ckpt or last.ckpt of a run
calibrate --ckpt={{t}}/file --tolerance=0            | tolerance=0.0: give a share above 0
test --ckpt={{t}}/file --until-sure=95               | until_sure=95.0: give a probability
predict --ckpt={{t}}/file x.bin --until-sure=2       | until_sure=2.0: give a probability
calibrate --ckpt={{t}}/file --tolerance=x            | for --tolerance: unable to convert "x"
report                                               | --run requires an argument
report {{t}}/folder                                  | no run in {{t}}/folder: give a run folder
watch {{t}}/nowhere                                  | no folder {{t}}/nowhere: give that of a run
data nosuch                                          | Available commands: prepare, check
data check --dataset=nosuch                          | nosuch is not known: choose from
data check --root={{t}}/folder                       | point --data-path at a folder
data check --root={{t}}/nowhere                      | no folder {{t}}/nowhere: give --root FOLDER
data prepare nosuch --root={{t}}/out                 | no data set 'nosuch': choose from
data prepare nmnist                                  | --root requires an argument
data show {{t}}/nowhere -o {{t}}/x.png               | give a recording, an image or a set
data show {{t}}/file -o {{t}}/x.png                  | begin no recording that is read
data shard --dataset=digits                          | --output-dir requires an argument
data shard --dataset=digits {HERE} --shard-size=0    | shard_size=0: at least 1
recipes nosuch                                       | no recipe 'nosuch': choose from
ablate --dataset=digits --arch=vggsnn {HERE}         | an ablation needs a recipe with estl.super
{GUIDED} --rungs=9 {HERE}                            | no rung 9: the rungs are 1, 1t
{GUIDED} --rungs=1 --seeds=a,b {HERE}                | is no list of numbers: write 0,1,2
{GUIDED} --rungs=1 --jobs=0 {HERE}                   | --jobs is 0: give a number at least 1
{GUIDED} --rungs=1                                   | --output-dir requires an argument
compare --dataset=digits --arch=vggsnn --only=nosuch {HERE}         | the experiments are plain
compare --dataset=digits --arch=vggsnn --only=tse,{{t}}/key.yaml {HERE}    | chooses no supervision
compare --dataset=digits --arch=vggsnn --only={{t}}/no.yaml {HERE}  | no.yaml cannot be read
compare --dataset=digits --arch=vggsnn --eps=x {HERE}               | give a number or a fraction
tune --dataset=digits --arch=vggsnn --trials=0 {HERE}               | --trials is 0: give a number
tune --dataset=digits --arch=vggsnn --grid-tau-f=0.3 {HERE}         | give --grid-tau-f and --grid
tune --dataset=digits --arch=vggsnn --storage=nosuch://x {HERE}     | give another --storage
tune --dataset=digits --arch=vggsnn                                 | --output-dir requires an arg
train-teacher --dataset=digits --objective=nosuch {HERE}            | from: "embedding", "linear"
train-teacher --dataset=cifar10dvs --data-path={{t}}/folder {HERE}  | point --data-path at CIFAR10
train-teacher --dataset=digits --epochs=0 {HERE}                    | --epochs is 0: give a number
train-teacher --dataset=digits --image-size=30 {HERE}               | a multiple of patch=4
train-teacher --dataset=digits --image-size=0 {HERE}                | heads=4 must be at least 1
train-teacher --dataset=digits --lr=-1 {HERE}                       | lr is -1.0: it must be above 0
train-teacher --dataset=digits --images={{t}}/nowhere {HERE}        | point --images at a folder
train-teacher --dataset=digits                                      | --output-dir requires an arg
bench nosuch                                         | no comparison nosuch: choose from
bench --memory nosuch                                | --config nosuch cannot be read: give a
fitt                                                 | Did you mean "fit"? Available commands
"""


def rows(text: str) -> list[tuple[str, str]]:
    """Lines of words and what the error says."""
    lines = [line.rpartition("|") for line in text.strip().splitlines()]
    return [(words.strip(), says.strip()) for words, _, says in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are not what they should be."""
    here = tmp_path_factory.mktemp("mistakes")
    for name in ("folder", "damaged"):
        (here / name).mkdir()
    texts = {
        "bad": "seed: [1\n",
        "key": "sed: 3\n",
        "value": "learner: 3\n",
        "null": "data: {class_path: estl.data.Digits}\nstudent:\n",
        "list": "- a\n- b\n",
        "deep": "[" * 1500,
        "empty": "",
    }
    for name, text in texts.items():
        (here / f"{name}.yaml").write_text(text)
    (here / "bytes.yaml").write_bytes(bytes(range(256)))
    (here / "file").write_text("x")
    (here / "damaged" / "config.yaml").touch()
    return here


def check(words: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.replace("{t}", str(place)).replace("~", " ") for word in words]
    assert main(words) == 2
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1, text
    assert says.replace("{t}", str(place)) in text
    assert text.startswith("estl")
    assert not list((place / "out").glob("*/**/*.ckpt"))


def test_there_are_more_than_eighty_wrong_command_lines() -> None:
    assert len({words for words, _ in rows(FIT) + rows(OTHERS)}) > 80


@pytest.mark.parametrize(("words", "says"), rows(FIT))
def test_a_wrong_fit_gets_one_line_and_leaves_nothing(
    words: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if GPU and "accelerator=gpu" in words:
        pytest.skip("there is a GPU")
    folder = [] if "--output-dir" in words else [HERE]
    check(["fit", *SMALL, *folder, *words.split()], says, place, capsys)
    assert not (place / "out").exists()


@pytest.mark.parametrize(("words", "says"), rows(OTHERS))
def test_a_wrong_command_gets_one_line(
    words: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(words.split(), says, place, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("words", "wrong", "right"),
    [
        ("fit", "--learner.part_lr={nosuch: 1}", "--lr=0.01"),
        ("fit", "--devices=0", "--devices=1"),
        ("fit", "--tse --tau-f=-1", "--tse --tau-f=0.4"),
        ("compare --only=plain --seeds=0", "--lr=-1", "--lr=0.01"),
        ("compare --only=plain --seeds=0", "--student.init_args.classes=7", "--lr=0.01"),
        ("tune --trials=1", "--data.init_args.val_fraction=0", "--data.init_args.val_fraction=0.1"),
    ],
)
def test_a_corrected_command_into_the_same_folder_works(
    words: str, wrong: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [*words.split(), *SMALL, f"--output-dir={tmp_path / 'out'}"]
    more = [wrong] if "{" in wrong else wrong.split()
    assert main([*both, *more]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main([*both, *right.split()]) == 0
