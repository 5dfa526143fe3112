from limbeck.cli import catalogue
from limbeck.methods import METHODS
from limbeck.models import MODELS
from limbeck.options import fill, keyword_model, signature
from limbeck.recipe import signatures


def test_the_file_says_what_the_functions_say():
    assert signatures.FILE.read_text() == catalogue.signatures(), "run: limbeck methods --write docs/methods"


def test_a_block_is_completed_alike_by_function_and_by_file():
    known = signatures.known()
    for table, kind in ((METHODS, known.methods), (MODELS, known.models)):
        for name, function in table.items():
            options = signature(function)
            needed = {key for key, option in options.items() if "default" not in option}
            assert list(keyword_model(function).model_fields) == list(keyword_model(kind[name]).model_fields)
            if not needed:
                assert fill(table, name, kind="x") == fill(kind, name, kind="x")
