"""Readers: each layout by hand, and one clear line for each way in which a file can be wrong."""

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ballast.data import readers
from ballast.data.filtering import in_order
from ballast.errors import BallastError

TABULAR = {"name": "tabular", "interactions": "log.csv", "items": None}


def read(folder: Path, **block: Any) -> readers.RawTables:
    return readers.read(folder, block, "reader")


def pairs(raw: readers.RawTables) -> str:
    rows = in_order(raw.interactions)
    return " ".join(rows["user"] + rows["item"])


def refused(folder: Path, **block: Any) -> str:
    """The message of the error, without the folder's name."""
    with pytest.raises(BallastError) as error:
        read(folder, **block)
    message = str(error.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


def test_an_unknown_reader_or_key_is_told_with_the_known_ones(tmp_path: Path) -> None:
    known = "known: amazon, hm, movielens, tabular"
    assert (
        refused(tmp_path, name="amazn")
        == f"reader.name: unknown reader 'amazn'; did you mean 'amazon'? {known}"
    )
    assert refused(tmp_path, name="amazon", fiel="x") == "reader: fiel: unknown key; did you mean 'file'?"


def test_amazon_sequences(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("0 0 781 10\n12 7 0\n")
    raw = read(tmp_path, name="amazon", file="s.txt")
    assert pairs(raw) == "00 0781 010 127 120"
    assert raw.interactions["timestamp"].isna().all()
    assert sorted(raw.items["item"]) == ["0", "10", "7", "781"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1 2 3\n2 4x 5\n",
            "line 2: '4x' is not a whole number; expected a user and items, all whole numbers",
        ),
        ("1 2\n2\n", "line 2: found no `user item item ...`; expected a user and items, all whole numbers"),
        (
            "1 2\n\n3 4\n",
            "line 2: found no `user item item ...`; expected a user and items, all whole numbers",
        ),
        ("1 2\n1 3\n", "line 2: user 1 was already given in line 1"),
    ],
)
def test_amazon_refuses_a_bad_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    assert refused(tmp_path, name="amazon", file="s.txt") == f"s.txt: {message}"


def test_an_empty_or_absent_sequence_file_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path, name="amazon", file="s.txt").startswith("s.txt: not found; run the fetch stage")
    (tmp_path / "s.txt").write_text("")
    assert "no interactions were read" in refused(tmp_path, name="amazon", file="s.txt")


PURCHASES = """t_dat,customer_id,article_id,price,sales_channel_id
2020-09-15,u,0108775044,0.01,2
2020-09-16,u,0108775044,0.02,2
2020-09-16,u,0111565001,0.03,2
2020-09-17,u,0108775044,0.04,1
2020-09-17,v,0999999999,0.05,1
2020-09-18,v,0108775044,0.06,1
"""
ARTICLES = (
    "article_id,prod_name,product_type_name,graphical_appearance_name,colour_group_name,department_name,index_name,"
    "detail_desc,unused\n"
    '0108775044,Strap top,Vest top,Solid,White,Jersey,Ladieswear,"Jersey top, narrow straps.",1\n'
    "0111565001,NA,Tights,Stripe,Black,Socks,Ladieswear,,1\n"
    "0999999999,Boots,Boots,Solid,Black,Shoes,Menswear,Boots.,1\n"
)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    (tmp_path / "transactions_train.csv").write_text(PURCHASES)
    with gzip.open(tmp_path / "articles.csv.gz", "wt") as file:
        file.write(ARTICLES)
    (tmp_path / "images/010").mkdir(parents=True)
    (tmp_path / "images/010/0108775044.jpg").write_bytes(b"")
    return tmp_path


def test_hm_takes_a_domain_and_a_window(fashion: Path) -> None:
    raw = read(fashion, name="hm", domain="Ladieswear", date_from="2020-09-16", date_to="2020-09-17")
    assert pairs(raw) == "u0108775044 u0111565001", "the repeat on the 17th goes, and so do the 15th and 18th"
    assert raw.interactions["price"].tolist() == [0.02, 0.03]
    assert raw.interactions["timestamp"].iloc[0] == 1600214400
    items = raw.items.set_index("item")
    assert (
        items.loc["0108775044", "description"] == "Jersey top, narrow straps. Colour: White. Pattern: Solid."
    )
    assert items.loc["0111565001", "description"] == "Colour: Black. Pattern: Stripe."
    assert items.loc["0111565001", "title"] == "NA", "a name, not a missing value"
    assert items.loc["0108775044", "image"] == "images/010/0108775044.jpg"
    assert items["image"].isna()["0111565001"]
    assert raw.notes == {"repeat_purchases_dropped": 1, "articles_without_image": 1}


def test_hm_without_limits_takes_all(fashion: Path) -> None:
    assert pairs(read(fashion, name="hm")) == "u0108775044 u0111565001 v0999999999 v0108775044"


def test_hm_refusals(fashion: Path) -> None:
    message = refused(fashion, name="hm", domain="Mens")
    assert message == "articles.csv.gz: no index_name is 'Mens'; there are: Ladieswear, Menswear"
    assert refused(fashion, name="hm", date_from="16.9.") == (
        "reader.date_from: '16.9.' is not a date such as '2020-09-16'"
    )
    (fashion / "transactions_train.csv").write_text(PURCHASES.replace("0.03", "free"))
    assert refused(fashion, name="hm").startswith(
        "transactions_train.csv: line 4: not a purchase: 2020-09-16, u,"
    )
    (fashion / "transactions_train.csv").write_text("a,b\n1,2\n")
    assert "transactions_train.csv: not in the competition's layout" in refused(fashion, name="hm")
    (fashion / "transactions_train.csv").unlink()
    assert "transactions_train.csv: not found, nor with .gz or .zip" in refused(fashion, name="hm")


def test_movielens(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t2\t5\t20\n1\t1\t1\t20\n1\t3\t3\t10\n")
    film = "{}|{}|01-Jan-1995||http://x|0|" + "|".join("0" * 18) + "\n"
    both = film.replace("|0|0|0|0|0|", "|0|0|0|1|1|", 1)
    text = both.format(1, 'L"Été (1995)') + film.format(2, "unknown") + film.format(3, "C")
    (tmp_path / "u.item").write_bytes(text.encode("latin-1"))
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters/3.jpg").write_bytes(b"")
    raw = read(tmp_path, name="movielens")
    assert pairs(raw) == "13 12 11", "a tie in time keeps the file's order"
    assert raw.items["title"].tolist()[::2] == ['L"Été (1995)', "C"]
    assert pd.isna(raw.items["title"][1])
    assert raw.items["category"].tolist()[0] == "Animation, Children's"
    assert raw.items["image"].dropna().tolist() == ["posters/3.jpg"]
    (tmp_path / "u.data").write_text("1\t2\t5\t20\n1\t1\t1\n")
    assert (
        refused(tmp_path, name="movielens")
        == "u.data: line 2: expected user, item, rating and time, tab-separated"
    )


def log(folder: Path, text: str, **block: Any) -> readers.RawTables:
    (folder / "log.csv").write_text(text)
    return read(folder, **{**TABULAR, **block})


def bad_log(folder: Path, text: str, **block: Any) -> str:
    (folder / "log.csv").write_text(text)
    return refused(folder, **{**TABULAR, **block})


def test_tabular_defaults_read_the_layout_of_the_simulated_shop(tmp_path: Path) -> None:
    pd.DataFrame(
        {"user": ["u", "u"], "item": ["b", "a"], "timestamp": [20, 10], "is_noise": [True, False]}
    ).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame(
        {
            "item": ["a", "b", "c"],
            "title": ["A", "B", "C"],
            "description": [None, "b", "c"],
            "category": ["x > y"] * 3,
            "brand": ["z"] * 3,
            "price": [1.5, None, 3.0],
            "image": ["images/a.png", None, "images/gone.png"],
        }
    ).to_parquet(tmp_path / "items.parquet")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"")
    raw = read(tmp_path, name="tabular")
    assert pairs(raw) == "ua ub"
    assert in_order(raw.interactions)["is_noise"].tolist() == [False, True]
    assert raw.items["image"].dropna().tolist() == ["images/a.png"]
    assert raw.items["price"].dropna().tolist() == [1.5, 3.0]
    assert raw.notes == {"repeats_dropped": 0, "missing_image_files": 1, "items_without_content": 0}


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["30", "10", "20"], [10, 20, 30]),
        (["10.75", "10.25", "10.5"], [10, 10, 10]),
        (["2024-01-03", "2024-01-01", "2024-01-02"], [1704067200, 1704153600, 1704240000]),
        (["1970-01-01T00:00:09.9Z", "1970-01-01 01:00:08+01:00", "1970-01-01T00:00:09.2"], [8, 9, 9]),
        ([str(2**60 + 3), str(2**60 + 1), str(2**60 + 2)], [2**60 + 1, 2**60 + 2, 2**60 + 3]),
    ],
)
def test_tabular_times(times: list[str], seconds: list[int], tmp_path: Path) -> None:
    raw = log(tmp_path, f"user,item,timestamp\nu,late,{times[0]}\nu,first,{times[1]}\nu,second,{times[2]}\n")
    assert pairs(raw) == "ufirst usecond ulate"
    assert in_order(raw.interactions)["timestamp"].tolist() == seconds


def test_tabular_order_settles_ties_and_serves_without_times(tmp_path: Path) -> None:
    text = "user,item,timestamp,step\nu,a,5,2\nu,b,5,1\nu,c,4,9\n"
    assert pairs(log(tmp_path, text, order="step")) == "uc ub ua"
    assert pairs(log(tmp_path, text, order="step", timestamp=None)) == "ub ua uc"
    assert pairs(log(tmp_path, text, timestamp=None)) == "ua ub uc"


def test_tabular_compressed_with_other_names_and_byte_order_mark(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "log.tsv.gz", "wb") as file:
        file.write("﻿who\twhat\twhen\n007\tNA\t1\n\n007\t1.0\t2\n".encode())
    raw = read(
        tmp_path,
        **{**TABULAR, "interactions": "log.tsv.gz"},
        user="who",
        item="what",
        timestamp="when",
        separator="\t",
    )
    assert pairs(raw) == "007NA 0071.0", "ids stay as they are written"


def test_tabular_drops_repeats_unless_told(tmp_path: Path) -> None:
    text = "user,item,timestamp\nu,a,1\nu,b,2\nu,a,3\n"
    raw = log(tmp_path, text)
    assert (pairs(raw), raw.notes) == ("ua ub", {"repeats_dropped": 1})
    assert pairs(log(tmp_path, text, keeps_repeats=True)) == "ua ub ua"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "log.csv: the file is empty"),
        ("user,item,timestamp\n", "log.csv: there are no rows"),
        (
            "usr,item,timestamp\nu,a,1\n",
            "log.csv: column 'user' is missing; found: usr, item, timestamp; did you mean 'usr'?",
        ),
        (
            "user;item;timestamp\nu;a;1\n",
            "log.csv: column 'user' is missing; found: user;item;timestamp; the header is one column: write "
            "`separator: ';'` under the reader",
        ),
        ("user,item,timestamp\nu,a,1\nu,,2\n", "log.csv: line 3: item is empty"),
        (
            "user,item,timestamp\nu,a,1\n\nu,b,soon\nu,c,3\n",
            "log.csv: line 4: timestamp 'soon' is not a number or an ISO date such as 2024-01-31 or "
            "2024-01-31T18:30:00",
        ),
        (
            'user,item,timestamp\n"u\nv",a,1\nu,b,inf\n',
            "log.csv: line 4: timestamp 'inf' is not a number or an ISO date such as 2024-01-31 or "
            "2024-01-31T18:30:00",
        ),
        ("user,item,timestamp\nu,a\n", "log.csv: line 2: timestamp is empty"),
        (
            "user,item,timestamp,is_noise\nu,a,1,\nu,b,2,maybe\n",
            "log.csv: line 3: is_noise 'maybe' is not true, false, 1 or 0",
        ),
        (
            "user,item,timestamp\nu,a,1,2\nu,b,1,2\n",
            "log.csv: line 2: more cells than the header has columns; check `separator`",
        ),
    ],
)
def test_tabular_refuses_bad_rows_of_the_log(text: str, message: str, tmp_path: Path) -> None:
    assert bad_log(tmp_path, text) == message


def test_tabular_refuses_what_cannot_be_parsed(tmp_path: Path) -> None:
    assert "line 3, saw 4" in bad_log(tmp_path, "user,item,timestamp\nu,a,1\nu,b,2,3\n")
    assert (
        refused(tmp_path, name="tabular")
        == "interactions.parquet: not found; check `interactions` of the reader"
    )
    assert "write `items: null`" in bad_log(tmp_path, "user,item,timestamp\nu,a,1\n", items="items.csv")
    (tmp_path / "log.csv").write_bytes("user,item,timestamp\nü,a,1\n".encode("latin-1"))
    assert refused(tmp_path, **TABULAR) == (
        "log.csv: not in UTF-8 (byte 0xfc); save the file as UTF-8 and run again"
    )
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"user,item,timestamp\n" * 99)[:-9])
    assert refused(tmp_path, **{**TABULAR, "interactions": "log.csv.gz"}).startswith(
        "log.csv.gz: cannot be read"
    )
    (tmp_path / "log.parquet").write_bytes(b"no parquet")
    assert refused(tmp_path, **{**TABULAR, "interactions": "log.parquet"}).startswith(
        "log.parquet: cannot be read"
    )
    pd.DataFrame({"user": ["u", None], "item": [1, 2], "timestamp": [1, 2]}).to_parquet(
        tmp_path / "log.parquet"
    )
    assert (
        refused(tmp_path, **{**TABULAR, "interactions": "log.parquet"}) == "log.parquet: row 2: user is empty"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,price\na,1\nb,2\na,3\n", "line 4: item 'a' was already given in line 2"),
        ("item,price\na,1\nb,-2\n", "line 3: price '-2' is not a finite price of 0 or more"),
        ("item,price\na,inf\n", "line 2: price 'inf' is not a finite price of 0 or more"),
        ("item,price\na,cheap\n", "line 2: price 'cheap' is not a finite price of 0 or more"),
        ("item,image\na,/etc/a.png\n", "line 2: image '/etc/a.png' is not a path relative to the raw folder"),
    ],
)
def test_tabular_refuses_bad_items(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(text)
    assert bad_log(tmp_path, "user,item,timestamp\nu,a,1\n", items="items.csv") == f"items.csv: {message}"


def test_tabular_refuses_an_item_table_that_knows_none_of_the_items(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,price\n7,1\n8,2\n")
    text = "user,item,timestamp\nu,007,1\nu,008,2\n"
    assert bad_log(tmp_path, text, items="items.csv") == (
        "items.csv: no item of log.csv is in this table; ids there are such as '007', here such as '7': "
        "write them alike"
    )
    assert len(log(tmp_path, text.replace("007", "7"), items="items.csv").items) == 2


def test_tabular_content_columns_are_optional_unless_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name,price\na,Anna,\n")
    text = "user,item,timestamp\nu,a,1\nu,b,2\n"
    raw = log(tmp_path, text, items="items.csv", items_item="sku", title="name")
    assert raw.items["title"].tolist() == ["Anna"]
    assert raw.items["price"].isna().all()
    assert raw.notes["items_without_content"] == 1
    message = bad_log(tmp_path, text, items="items.csv", items_item="sku", title="nam")
    assert message == "items.csv: column 'nam' is missing; found: sku, name, price; did you mean 'name'?"
