"""Towns hold together: families, shops and tastes agree with one another, and each is drawn from its number alone."""

import pytest

from lorascope.world.lore import names_of
from lorascope.world.persona import clock
from lorascope.world.town import town_of

HOURS = {
    "at five o'clock": 5,
    "at half past five": 5.5,
    "at six o'clock": 6,
    "at half past six": 6.5,
    "at seven o'clock": 7,
    "at half past seven": 7.5,
    "at eight o'clock": 8,
    "at nine o'clock": 9,
}
TOWNS = [town_of(5, split, number) for split in ("train", "validation", "test") for number in range(4)]


@pytest.mark.parametrize("town", TOWNS, ids=lambda town: town.name)
def test_a_town_holds_together(town):
    assert len({person.full_name for person in town.people}) == len(town.people)
    for person in town.people:
        assert person.loves != person.hates
        assert person.town == town.name
        assert (person.fear, person.pastime.doing) != ("deep water", "swimming in the lake")
        if person.spouse is not None:
            (partner,) = [one for one in town.people if one.house == person.house and one.name == person.spouse]
            assert partner.spouse == person.name
    assert len({shop.owner.trade.name for shop in town.shops}) == len(town.shops)
    for shop in town.shops:
        assert town.shop_of(shop.owner) == shop
        assert shop.name.startswith(shop.owner.house.surname)
    for day in town.happenings:
        assert day.winner != day.second
        assert {day.winner, day.second} <= set(town.people)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_nobody_is_in_bed_when_the_shop_should_open(split):
    for number in range(30):
        for shop in town_of(0, split, number).shops:
            hour = HOURS[shop.owner.rises]
            assert hour < shop.opens, (shop.owner.trade.name, shop.owner.rises, shop.opens)


def test_inns_open_early_and_shut_at_midnight():
    inns = [shop for number in range(20) for shop in town_of(0, "train", number).shops if shop.owner.trade.name == "innkeeper"]
    assert inns
    assert {inn.opens for inn in inns} == {7, 8}
    assert {clock(inn.closes) for inn in inns} == {"midnight"}


def test_some_shops_rest_on_sunday_and_no_market_is_held_on_it():
    towns = [town_of(0, "train", number) for number in range(10)]
    assert "Sunday" in {shop.shut for town in towns for shop in town.shops}
    assert "Sunday" not in {town.market_day for town in towns}


def test_families_of_a_town_live_in_streets_of_their_own():
    for town in TOWNS:
        homes = {person.house.surname: person.house.home for person in town.people}
        assert len(set(homes.values())) == len(homes)


def test_a_town_is_a_function_of_seed_split_and_number():
    town_of.cache_clear()
    again = town_of(5, "train", 0)
    assert again == TOWNS[0]
    assert town_of(6, "train", 0).people != again.people


def test_people_bear_their_splits_names():
    for town, split in zip(TOWNS, ["train"] * 4 + ["validation"] * 4 + ["test"] * 4, strict=True):
        assert {person.house.surname for person in town.people} <= set(names_of(split).surnames)
        assert town.name in names_of(split).towns


def test_somebody_without_a_shop_has_none():
    farmers = [person for town in TOWNS for person in town.people if person.trade.name == "farmer"]
    assert farmers
    assert all(town.shop_of(farmer) is None for town in TOWNS for farmer in farmers)
    assert all(town.of_trade("farmer") in (None, *farmers) for town in TOWNS)
