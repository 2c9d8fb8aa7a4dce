"""Model cards: what ships with an adapter, as the Hub reads it and as people do.

``facts`` is what a card may say, ``recorded`` reads it from a store and ``saved`` from an adapter's files, ``document`` and
``usage`` write it, ``licence`` knows whose terms are quoted, ``privacy`` what of this machine must not be told. The one writer
of cards: a study writes short ones while it runs, an export whole ones, a truncation its own. Knows no statistics. Floor:
above ``store``, below ``cohort``, which writes cards too.
"""

from lorascope.model_card.document import model_card, public_card
from lorascope.model_card.facts import (
    AdapterFacts,
    BaseFacts,
    CardFacts,
    Cost,
    CutFacts,
    DataFacts,
    MetricFacts,
    ScoreFacts,
    SeedFacts,
)
from lorascope.model_card.licence import UNKNOWN_LICENCE, Licence, chosen_licence, readme_licence, stated_licence
from lorascope.model_card.privacy import Privacy, is_local, public_name
from lorascope.model_card.recorded import data_facts, privacy_of, public_study, settings_of, study_places, trial_card
from lorascope.model_card.saved import adapter_facts, task_type_of_adapter, truncated_card

__all__ = [
    "UNKNOWN_LICENCE",
    "AdapterFacts",
    "BaseFacts",
    "CardFacts",
    "Cost",
    "CutFacts",
    "DataFacts",
    "Licence",
    "MetricFacts",
    "Privacy",
    "ScoreFacts",
    "SeedFacts",
    "adapter_facts",
    "chosen_licence",
    "data_facts",
    "is_local",
    "model_card",
    "privacy_of",
    "public_card",
    "public_name",
    "public_study",
    "readme_licence",
    "settings_of",
    "stated_licence",
    "study_places",
    "task_type_of_adapter",
    "trial_card",
    "truncated_card",
]
