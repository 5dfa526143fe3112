"""Mutated recipes, pushed through the command: what is refused in good order, and what is not.

``python tests/fuzz/recipes.py N SEED`` makes N of them and prints the counts.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

BASES = Path(__file__).parents[2] / "recipes"

CHUNK = 500
"""Recipes that one process reads; the next begins afresh."""

SECONDS = 10
"""A command that takes longer hangs."""

MEMORY = 1_500_000_000
"""Bytes of addresses above what the process has when it begins."""

LINES, LETTERS = 15, 12_000
"""A message that is longer is not for a screen."""

FAULTS = ("traceback", "hang", "memory", "long", "code", "unstable")
"""What must not happen: of ``long``, the message; ``code``, an exit code other than 0 and 2; ``unstable``, an accepted
recipe that cannot be written and read again."""

NASTY = [
    *(
        "",
        "null",
        "~",
        "true",
        "false",
        "yes",
        "on",
        "0",
        "-1",
        "1",
        "1.5",
        "-0.0",
        "1e400",
        "-1e-400",
        ".inf",
        "-.inf",
    ),
    *(".nan", "1e3", "0x10", "0o17", "1_000", "012", "+5", "1__0", "2020-01-01", "2001-12-14t21:59:43.10-05:00"),
    *(
        "12:30:45",
        "=",
        "<<",
        "!!int abc",
        "!!int 3",
        "!!float x",
        "!!str 3",
        "!!binary aGk=",
        "!!binary ???",
        "!!set {a, b}",
    ),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!!null x", "!!bool 3", "!!python/object:os.system [x]"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!unknown x", "!<tag:x> y", "! 12"),
    *("&a [*a]", "&a {b: *a}", "*nothing", "*a", "&a", "&a &b 3", "[*a, &a 3]", "{<<: *m}", "{<<: 3}", "{<<: [1]}"),
    *("{? [1] : 2}", "{? {a: 1} : 2}", "{2020-01-01: 1}", "{null: 1}", "{1: 2}", "{true: 1}", "{a: 1, a: 2}", "{: 1}"),
    *("[]", "{}", "[[]]", "[null]", "[1, 2, 3]", "['']", "[.nan]", "{name: 3}", "{name: null}", "{name: {name: x}}"),
    *("{name: kd}", "{name: kd, preset: 3}", "{name: linear, start: x}", "[kd, kd]", "[kd, [kd]]", "[kd, 3]", "[{}]"),
    *("9" * 100, "9" * 4300, "-" + "9" * 5000, "1" + "0" * 18, "1" + "0" * 12, "2147483648", "4294967296", "1e18"),
    *("18446744073709551616", "[1000000000000]", "[1000000000, 1000000000]", "[[[1]]]", "0." + "0" * 400 + "1"),
    *(
        "~nouser",
        "~nouser/x",
        "~/x",
        "/dev/zero",
        "/proc/self/mem",
        "/dev/stdin",
        "/",
        ".",
        "..",
        "'\\0'",
        '"\\0"',
        '"\\ud800"',
    ),
    *(
        '"\\udc80\\ud800"',
        '"\\x1b[31m"',
        '"\\u202e"',
        '"a\\nb"',
        '"\\U0010ffff"',
        "'" + "x" * 300 + "'",
        "'" + "x" * 5000 + "'",
    ),
    *(
        "'" + "ä" * 3000 + "'",
        "a" * 70_000,
        "'a/" + "b/" * 3000 + "'",
        "file.py:fn",
        "nowhere.py:fn",
        ":fn",
        "x.py:",
        "timm:",
    ),
    *(
        "timm:resnet18",
        "torchvision:",
        "{name: 'timm:x', pretrained: [1]}",
        "{name: timm:x, 3: 4}",
        "http://x:y",
        "a:b:c",
    ),
    *(
        "[" * 30 + "]" * 30,
        "[" * 3000 + "]" * 3000,
        "{a: " * 200 + "1" + "}" * 200,
        "[" * 5000,
        "- - - -",
        "? ?",
        "|\n x",
        ">\n x",
    ),
    *(
        "[" + "1, " * 2000 + "1]",
        "[" + "1, " * 12_000 + "1]",
        "'unclosed",
        '"unclosed',
        "[1",
        "{a",
        "@x",
        "`x",
        "%x",
        "\t3",
        "# x",
    ),
    *("digits", "folder", "mnist", "kd", "alone", "mlp", "resnet20", "sgd", "cosine", "auto", "fine_tune", "net2net"),
]
"""Values as YAML writes them, or fails to."""

KEYS = [
    *("name", "model", "weights", "train", "epochs", "parts", "preset", "networks", "allow", "size", "table", "values"),
    *(
        "int",
        "str",
        "[key]",
        "dict",
        "a[0]",
        "null",
        "1",
        "true",
        "''",
        '"\\0"',
        "<<",
        "=",
        "2020-01-01",
        "? [a]",
        "? {a: 1}",
    ),
    *(
        "!!binary aGk=",
        "*a",
        "&k x",
        "!!set x",
        ".inf",
        "x" * 3000,
        "ä",
        "__class__",
        "model_config",
        "lines",
        "9" * 4400,
    ),
]
"""Keys, likewise."""


def mutated(index: int, seed: int) -> tuple[bytes, list[str]]:
    """A recipe's bytes, and arguments of the command besides the file."""
    chance = random.Random(f"{seed}/{index}")
    texts = [path.read_text(encoding="utf-8") for path in sorted(BASES.glob("*.yaml"))]
    text = chance.choice(texts)
    arguments: list[str] = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.random()
        if kind < 0.55:
            text = _one_line(text, chance)
        elif kind < 0.75:
            where = ".".join(
                chance.choices(["teacher", "student", "train", "data", "method", *KEYS[:12]], k=chance.randint(1, 3))
            )
            arguments += ["--set", f"{where}={chance.choice(NASTY)}".replace("\0", "")]
        else:
            text = chance.choice(_WHOLE)(text, chance)
    content = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.25:
        content = chance.choice(_BYTES)(content, chance)
    return content, arguments


def _one_line(text: str, chance: random.Random) -> str:
    """Change, delete, double, move or indent a line with a key."""
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if ":" in line.partition("#")[0]] or [0]
    place = chance.choice(places)
    line = lines[place].partition(" #")[0]
    key, _, value = line.partition(":")
    indent = line[: len(line) - len(line.lstrip())]
    action = chance.randrange(8)
    if action < 3:
        inner = [spot for spot, sign in enumerate(line) if sign in ":,[{" and spot > len(key)]
        spot = chance.choice([len(key), *inner])
        end = min([end for end in (line.find(sign, spot + 1) for sign in ",]}") if end > 0] or [len(line)])
        lines[place] = f"{line[: spot + 1]} {chance.choice(NASTY)}{line[end:] if chance.random() < 0.7 else ''}"
    elif action == 3:
        del lines[place]
    elif action == 4:
        lines.insert(chance.choice(places), lines[place])
    elif action == 5:
        lines[place] = f"{indent}{chance.choice(KEYS)}:{value}"
    elif action == 6:
        lines.insert(place, f"{indent}{chance.choice(KEYS)}: {chance.choice(NASTY)}")
    else:
        lines[place] = chance.choice([" ", "  ", "\t", "- ", "? "]) + lines[place]
    return "\n".join(lines)


def _bomb(text: str, chance: random.Random) -> str:
    """Aliases of aliases: what they stand for grows by a power."""
    wide, deep = chance.choice(((9, 9), (2, 40), (100, 5), (1, 300)))
    made = [f"a0: &a0 [{', '.join(['x'] * wide)}]"]
    made += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide)}]" for n in range(1, deep)]
    blocks = ["b0: &b0 {x: 1}", *(f"b{n}: &b{n} {{x: *b{n - 1}, y: *b{n - 1}}}" for n in range(1, 30))]
    return "\n".join([*chance.choice((made, blocks)), text])


def _anchored(text: str, chance: random.Random) -> str:
    """Two blocks that share one, by an alias or a merge key."""
    shared = chance.choice(("&m {epochs: 2}", "&m [1]", "&m mlp", "&m {<<: *m}", "&m {name: mlp, hidden: [8]}"))
    used = chance.choice(("{<<: *m}", "*m", "{<<: [*m, *m]}", "[*m, *m]", "{x: *m}"))
    return f"{text}\nx: {shared}\n{chance.choice(KEYS)}: {used}\n"


_WHOLE = [
    _bomb,
    _anchored,
    lambda text, chance: f"{text}\n{chance.choice(KEYS)}: {chance.choice(NASTY)}\n",
    lambda text, chance: chance.choice(NASTY),
    lambda text, chance: f"{text}\n---\n{text}",
    lambda text, chance: f"{chance.choice(('%YAML 1.1', '%YAML 9.9', '%TAG ! x', '%X', '...'))}\n---\n{text}",
    lambda text, chance: "[" * chance.choice((25, 1000, 60_000)),
    lambda text, chance: f"{text}\nmethod:\n" + "\n".join(" " * n + "-" for n in range(1, 60)),
    lambda text, chance: text.replace("\n", chance.choice(("\r\n", "\r", "\n\n", "\x85", "\u2028"))),
    lambda text, chance: text.replace(" ", "\t", chance.randint(1, 5)),
    lambda text, chance: text + "#" * chance.choice((100, 60_000, 200_000)),
    lambda text, chance: "\n" * chance.choice((100, 60_000)) + text,
    lambda text, chance: text[: chance.randrange(len(text) + 1)],
    lambda text, chance: "\n".join(chance.sample(text.split("\n"), len(text.split("\n")))),
]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content or b" ")
    for _ in range(chance.choice((1, 1, 3, 20))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _inserted(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) + 1)
    return (
        content[:place]
        + chance.choice((b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"\xc2\x85", b"\x7f"))
        + content[place:]
    )


_BYTES = [
    _flipped,
    _flipped,
    _inserted,
    lambda content, chance: b"\xef\xbb\xbf" + content,
    lambda content, chance: content.decode("utf-8", "replace").encode(chance.choice(("utf-16", "utf-16-le", "utf-32"))),
    lambda content, chance: content * chance.choice((2, 300)),
    lambda content, chance: bytes(chance.randrange(256) for _ in range(200)),
]


def run(n: int, seed: int) -> dict[str, int]:
    """Make recipes and read each by the command, in processes whose memory and time are bounded.

    Args:
        n: how many.
        seed: of the mutations; the same recipes for the same seed.

    Returns:
        counts: ``accepted``, ``refused``, and each of `FAULTS`; ``slowest``, the milliseconds of processor time that
        the slowest took.
    """
    counts: Counter[str] = Counter(dict.fromkeys(("accepted", "refused", *FAULTS, "slowest"), 0))
    for start in range(0, n, CHUNK):
        many = min(CHUNK, n - start)
        command = [sys.executable, __file__, "--chunk", str(start), str(many), str(seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 + SECONDS * many / 5, check=False)
        except subprocess.TimeoutExpired:
            counts["hang"] += 1
            continue
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            counts["memory" if done.returncode < 0 else "traceback"] += 1
            continue
        print(done.stderr, file=sys.stderr, end="")
        found = json.loads(done.stdout)
        slowest = max(counts["slowest"], found.pop("slowest"))
        counts.update(found)
        counts["slowest"] = slowest
    return dict(counts)


class _Hang(BaseException):
    pass


def _chunk(start: int, many: int, seed: int) -> None:
    """Read so many recipes here; the counts go to the output, what went wrong to the other stream."""
    from limbeck.cli import run
    from limbeck.recipe import read as recipe

    def accepted(asked: object, checked: object, out: Path, **options: object) -> None:
        placed = recipe.with_absolute_paths(recipe.smoke(checked))
        Path("again.yaml").write_text(recipe.dump(placed), encoding="utf-8")
        if recipe.read(Path("again.yaml")) != placed:
            raise AssertionError("it reads as another recipe")

    def late(*_: object) -> None:
        raise _Hang

    run._run = accepted
    signal.signal(signal.SIGALRM, late)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    counts: Counter[str] = Counter(slowest=0)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for index in range(start, start + many):
            content, arguments = mutated(index, seed)
            began = time.process_time()
            kind, said = _outcome(content, arguments)
            counts[kind] += 1
            counts["slowest"] = max(counts["slowest"], round(1000 * (time.process_time() - began)))
            if kind in FAULTS:
                print(f"{kind} at {index} of seed {seed}: {said}", file=sys.stderr)
    print(json.dumps(counts))


def _outcome(content: bytes, arguments: list[str]) -> tuple[str, str]:
    from typer.testing import CliRunner

    from limbeck import cli

    Path("recipe.yaml").write_bytes(content)
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(cli.app, ["run", "recipe.yaml", *arguments])
    except _Hang:
        return "hang", repr(arguments)
    finally:
        signal.alarm(0)
    error = result.exception
    if isinstance(error, _Hang | MemoryError):
        return ("hang" if isinstance(error, _Hang) else "memory"), repr(error)
    if isinstance(error, AssertionError) or (error is not None and "again.yaml" in str(error)):
        return "unstable", repr(error)
    if error is not None and not isinstance(error, SystemExit):
        return "traceback", f"{error!r} {arguments}"
    if result.exit_code not in (0, 2):
        return "code", str(result.exit_code)
    if len(result.output) > LETTERS or len(result.output.splitlines()) > LINES:
        return "long", result.output[:300]
    if "again.yaml" in result.output:
        return "unstable", result.output[:300]
    return ("accepted" if result.exit_code == 0 else "refused"), ""


if __name__ == "__main__":
    if sys.argv[1] == "--chunk":
        _chunk(*map(int, sys.argv[2:]))
    else:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2])), indent=1))
