"""Folders of comparisons and runs with drawn figures, as training would write them."""

import json
from hashlib import sha256

import numpy as np
import torch
from safetensors.numpy import save_file

from limbeck.comparison.learned import Learned, NetworkLearned
from limbeck.comparison.maps import Maps, write_maps
from limbeck.comparison.results import (
    COMPARISON,
    SCHEMA,
    ArmResult,
    ComparisonResult,
    compared,
    headline_of,
    scores_of,
)
from limbeck.data import load
from limbeck.evaluate import Latency, metrics
from limbeck.evaluate.calibration import calibration
from limbeck.evaluate.corruptions import CORRUPTIONS, STRENGTHS
from limbeck.evaluate.deferral import Answers, deferral
from limbeck.evaluate.features import linear_cka, projection
from limbeck.experiment import results
from limbeck.experiment.results import NetworkResult, RunResult, plain, summarise
from limbeck.experiment.runfiles import file_record
from limbeck.files.atomic import write_sealed
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import dump, read

DATA = {"source": "digits", "validation": 0.25}
EPOCHS = {"alone": 6, "alone@2x": 12, "fitnets": 12}
SKILL = {"teacher": 9.0, "alone": 4.2, "alone@2x": 4.3, "kd": 5.2, "fitnets": 4.2, "srrl": 6.4}
ENVIRONMENT = {"python": "3.11", "packages": {"torch": "2.14"}, "cpu": "a CPU", "gpus": [], "commit": "abc"}


def outputs(arm, seed, split):
    """Logits that are right more often the higher the skill of the arm is; the same for the same arguments."""
    random = np.random.default_rng([seed, *arm.encode()])
    noise = random.normal(size=(len(split), 10)) * 2
    return (noise + np.eye(10)[split.targets.numpy()] * SKILL.get(arm, 5.0)).astype(np.float32)


def network(arm, seed, data, teacher=None):
    logits = torch.from_numpy(outputs(arm, seed, data.test))
    guide = None if teacher is None else torch.from_numpy(outputs("teacher", teacher, data.test))
    return NetworkResult(
        arm=arm,
        seed=seed,
        member=None,
        test=metrics(logits, data.test.targets, teacher_logits=guide),
        validation=None,
        parameters=175_000 if arm == "teacher" else 78_000,
        macs=1_648_256 if arm == "teacher" else 763_520,
        file_bytes=712_472 if arm == "teacher" else 318_640,
    )


def written(place, one, data, recipe, log):
    """Write the folder of a network, and return its result with the hash of its weights."""
    folder = place / one.name
    folder.mkdir(parents=True)
    random = np.random.default_rng(one.seed)
    epochs = EPOCHS.get(one.arm, 6)
    lines = [
        {
            "job": one.name,
            "stage": "hint" if one.arm == "fitnets" and epoch < epochs // 2 else one.arm,
            "validation_accuracy": one.test.accuracy * (1 - 0.5 * 0.5**epoch) + random.normal() * 0.004,
        }
        for epoch in range(epochs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with (log or place / "metrics.jsonl").open("a") as file:
        file.write(text)
    save_file({"weight": random.normal(size=4)}, folder / "student.safetensors")
    splits = {"test": data.test, "validation": data.validation}
    save_file(
        {name: outputs(one.arm, one.seed, split) for name, split in splits.items()}, folder / "outputs.safetensors"
    )
    files = {name: file_record(folder / name) for name in ("student.safetensors", "outputs.safetensors")}
    whole = NetworkResult(**{**vars(one), "weights_sha256": files["student.safetensors"]["sha256"]})
    (place / "recipe.yaml").write_text(recipe)
    write_sealed(place / "environment.json", ENVIRONMENT)
    held = {
        "files": files,
        "log": {"lines": len(lines), "sha256": sha256(text.encode()).hexdigest()},
        "recipe": sha256(recipe.encode()).hexdigest(),
    }
    write_sealed(folder / "result.json", plain(whole) | held)
    return whole


def recipe_of(data, **update):
    recipe = read(bundled("fsp_digits")).model_copy(update={"name": "example", **update})
    block = recipe.data.model_copy(update=DATA)
    return dump(recipe.model_copy(update={"data": block})) + f"# test: {data.test.digest()}\n"


def learned(folder, first, data, classes):
    """What the networks of the first seed learned, with the outputs as features."""
    splits = {"test": data.test, "validation": data.validation}
    logits = {arm: {name: torch.from_numpy(outputs(arm, 0, split)) for name, split in splits.items()} for arm in first}
    targets, checked = data.test.targets, data.validation.targets
    right = {arm: (of_arm["test"].argmax(1) == targets).double() for arm, of_arm in logits.items()}
    accuracy = {arm: [right[arm][targets == label].mean().item() for label in range(10)] for arm in first}
    guide = {name: logits["teacher"][name] for name in splits}
    points = {arm: logits[arm]["test"] for arm in first}
    maps = Maps(np.arange(len(targets)), targets.numpy(), {arm: projection(one) for arm, one in points.items()})
    networks = tuple(
        NetworkLearned(
            arm=arm,
            agreement=one.test.agreement,
            kl_to_teacher=one.test.kl_to_teacher,
            class_accuracy=tuple(accuracy[arm]),
            class_change=tuple(np.subtract(accuracy[arm], accuracy["alone"]).tolist()) if arm != "alone" else None,
            calibration=calibration(logits[arm]["test"], targets, (logits[arm]["validation"], checked)),
            nmi=0.8,
            cka=linear_cka(points[arm], points["teacher"]) if arm != "teacher" else None,
            clean_accuracy=one.test.accuracy,
            corrupted_accuracy={
                kind: tuple(one.test.accuracy * (1 - 0.1 * at) for at in STRENGTHS) for kind in CORRUPTIONS
            },
            deferral=deferral(
                Answers(logits[arm]["test"], guide["test"], targets),
                Answers(logits[arm]["validation"], guide["validation"], checked),
            )
            if arm != "teacher"
            else None,
        )
        for arm, one in first.items()
    )
    return Learned(0, tuple(classes), len(targets), len(targets), networks, write_maps(folder, maps))


def write_comparison(folder, methods=("kd", "fitnets", "srrl"), seeds=6, name="example", classes=None):
    """Write the folder of a comparison of methods with the student alone, and return the result."""
    data = load(**DATA)
    arms = ["alone", *methods, *(["alone@2x"] if "fitnets" in methods else [])]
    recipe = recipe_of(data, methods=(), baseline=False)
    teacher = written(folder / "teacher-seed0", network("teacher", 0, data), data, recipe, None)
    runs = {
        arm: [
            written(folder / f"{arm}-seed{seed}", network(arm, seed, data, 0), data, recipe, None)
            for seed in range(seeds)
        ]
        for arm in arms
    }
    scores = {arm: scores_of(of_arm, "classification") for arm, of_arm in runs.items()}
    correct = {
        arm: np.stack([outputs(arm, seed, data.test).argmax(1) == data.test.targets.numpy() for seed in range(seeds)])
        for arm in arms
    }
    against = {arm: "alone@2x" if arm == "fitnets" else "alone" for arm in methods}
    versus = compared(scores, against, correct, "holm")
    times = {arm: Latency(0.7 + 0.02 * place, 0.9, 100, 0.0) for place, arm in enumerate(arms)}
    first = {"teacher": teacher, **{arm: runs[arm][0] for arm in arms}}
    result = ComparisonResult(
        schema=SCHEMA,
        name=name,
        task="classification",
        seeds=tuple(range(seeds)),
        adjusted="holm",
        teacher=NetworkResult(**{**vars(teacher), "latency": Latency(1.4, 1.6, 100, 0.0)}),
        teachers=headline_of([teacher], "classification"),
        arms=tuple(
            ArmResult(
                arm,
                {"name": arm.partition("@")[0]},
                EPOCHS.get(arm, 6),
                headline_of(of_arm, "classification"),
                times[arm],
                versus.get(arm),
                None,
            )
            for arm, of_arm in runs.items()
        ),
        splits=dict(data.origins),
        notes=("a note",),
        decided={"device": "cpu", "precision": "32"},
        learned=learned(folder, first, data, classes or data.classes),
        runs=tuple(one for of_arm in runs.values() for one in of_arm),
    )
    write_sealed(folder / COMPARISON, plain(result))
    return result


def write_run(folder, seeds=3):
    """Write the folder of a run of kd, and return its result."""
    data = load(**DATA)
    recipe, log = recipe_of(data), folder / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        written(folder, network(arm, seed, data, None if arm == "teacher" else 0), data, recipe, log)
        for arm in ("teacher", "alone", "kd")
        for seed in (range(seeds) if arm != "teacher" else (0,))
    ]
    first = {one.arm: NetworkResult(**{**vars(one), "latency": Latency(0.8, 0.9, 100)}) for one in reversed(runs)}
    result = RunResult(
        schema=results.SCHEMA,
        name="a run",
        task="classification",
        method="kd",
        seeds=tuple(range(seeds)),
        teacher=first["teacher"],
        student=first["kd"],
        alone=first["alone"],
        summary=summarise(runs),
        splits=dict(data.origins),
        notes=(),
        decided={"device": "cpu"},
        runs=tuple(runs),
        metric=None,
    )
    write_sealed(folder / results.RESULT, plain(result) | {"recipe": sha256(recipe.encode()).hexdigest()})
    return result
