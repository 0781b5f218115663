from sft_lab.terminal import format_table, percent


def test_tables_align_names_left_and_numbers_right() -> None:
    table = format_table(["run", "math", "code"], [["dmt", "8.5", "10.0"], ["longer", "100", ""]])
    assert table.split("\n") == [
        "run     math  code",
        "dmt      8.5  10.0",
        "longer   100",
    ]


def test_a_table_may_have_no_rows() -> None:
    assert format_table(["run", "math"], []) == "run  math"


def test_scores_become_percent_with_one_digit() -> None:
    assert [percent(score) for score in (0.0, 0.12345, 1.0)] == ["0.0", "12.3", "100.0"]
