from limbeck import signatures
from limbeck.methods import METHODS
from limbeck.models import MODELS
from limbeck.options import fill, keyword_model, signature


def test_the_file_says_what_the_functions_say():
    assert not signatures.stale(), "run: limbeck methods --write docs/methods"


def test_a_stale_file_is_seen_and_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "FILE", tmp_path / "signatures.json")
    assert signatures.stale()
    signatures.FILE.write_text(signatures.written())
    assert not signatures.stale()
    signatures.FILE.write_text(signatures.written().replace("4.0", "5.0", 1))
    assert signatures.stale()


def test_a_block_is_completed_alike_by_function_and_by_file():
    known = signatures.known()
    for table, kind in ((METHODS, known.methods), (MODELS, known.models)):
        for name, function in table.items():
            options = signature(function)
            needed = {key for key, option in options.items() if "default" not in option}
            assert list(keyword_model(function).model_fields) == list(keyword_model(kind[name]).model_fields)
            if not needed:
                assert fill(table, name, kind="x") == fill(kind, name, kind="x")
