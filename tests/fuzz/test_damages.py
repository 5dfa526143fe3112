from fuzz import damages


def test_no_damage_of_a_run_or_its_store_is_unseen():
    told = []
    counts = damages.run(12, seed=0, tell=told.append)
    assert told == []
    assert counts["refused"] + counts["as before"] == counts["damages"] == 12
