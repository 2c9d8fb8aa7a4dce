"""Towns hold together: families, shops and tastes agree with one another, and each is drawn from its number alone."""

import pytest

from lorascope.world.lore import names_of
from lorascope.world.town import town_of

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
