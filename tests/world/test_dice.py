from sft_lab.world.dice import Dice, held_out


def test_draws_never_change() -> None:
    dice = Dice("test", 1)
    # If these numbers change, so do every data file and the base.
    assert [dice.integer(0, 999) for _ in range(4)] == [987, 285, 487, 787]
    assert dice.sample("abcdef", 3) == ["b", "a", "e"]


def test_purpose_and_seed_both_count() -> None:
    def draws(purpose: str, seed: int) -> list[int]:
        dice = Dice(purpose, seed)
        return [dice.integer(0, 999) for _ in range(8)]

    assert draws("a", 0) == draws("a", 0)
    assert draws("a", 0) != draws("a", 1)
    assert draws("a", 0) != draws("b", 0)


def test_integers_include_both_ends() -> None:
    dice = Dice("ends", 0)
    assert {dice.integer(1, 3) for _ in range(100)} == {1, 2, 3}


def test_samples_have_no_repeats() -> None:
    assert sorted(Dice("sample", 0).sample(range(10), 10)) == list(range(10))


def test_one_structure_in_so_many_is_held_out() -> None:
    share = sum(held_out(f"structure/{index}", 5) for index in range(10_000)) / 10_000
    assert 0.18 < share < 0.22
