"""The page of arithmetic says what its script computes."""

from benchmarks.scale import PAGE, SIZES, row_bytes, tables, written


def test_the_tables_of_the_page_are_those_of_the_script():
    text = PAGE.read_text(encoding="utf-8")
    assert all(text.count(f"<!-- table: {name} -->") == 1 for name in tables())
    assert written(text, tables()) == text, "run: python -m benchmarks.scale --write"


def test_the_bytes_of_a_view_are_those_of_the_docs():
    assert row_bytes("`top_k: 10`, float16", SIZES["ImageNet-1k"]) == 4 * 10 + 2
    assert row_bytes("all logits, float16", SIZES["ImageNet-1k"]) == 2 * 1000
