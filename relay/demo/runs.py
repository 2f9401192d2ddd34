"""The runs of the demo, written out. Content only: the words are in `script.py`, the playing in `player.py`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from relay.demo.script import Script, ask, call, completed, failed, nested, say, script, started, think, title

FORECAST: list[dict[str, Any]] = [
    {"hour": "07:00", "sky": "🌫️ fog in the valley", "wind_kmh": 4, "rain_pct": 5},
    {"hour": "10:00", "sky": "☀️ clear", "wind_kmh": 9, "rain_pct": 5},
    {"hour": "13:00", "sky": "🌤️ a few clouds", "wind_kmh": 16, "rain_pct": 20},
    {"hour": "16:00", "sky": "🌧️ showers from the west", "wind_kmh": 31, "rain_pct": 80},
]

WRITER = script(
    "writer",
    started(persona="writer"),
    think(
        "A day on the ridge for four, one of them seven years old. The weather decides where to turn, so I read the "
        "table first and count the hours backwards from the rain."
    ),
    call("call_1", "weather.table", {"place": "Hörnli, 1133 m", "day": "saturday"}, gives={"rows": FORECAST}),
    think("Dry until early afternoon, then wind and showers. The long way round is out; the short loop has a hut."),
    say("**Saturday on the Hörnli, before the rain ☂️**\n\n"),
    say("- *08:10* Train to Steg. The fog is still lying in the valley: you walk out of the top of it.\n"),
    say("- *08:40* Up through the beech wood, 45 min. Let the youngest lead; she sets a pace everybody can keep.\n"),
    call(
        "call_2",
        "trail.hours",
        {"from": "Steg", "via": "Hörnli", "to": "Gibswil", "slowest": "7 y"},
        gives={"hours": 3.6},
    ),
    nested("trail-checker"),
    say("- *10:30* The top. Clear until one o'clock: you see as far as the Säntis and, with luck, Mont Blanc.\n"),
    say("- *11:15* Soup at the hut, and no later: the wind doubles after noon.\n"),
    say("- *13:45* Down in Gibswil, two hours ahead of the showers. The 14:02 has a window on the lake side. 🚆\n\n"),
    say("Take one dry pair of socks each, and the small thermos rather than the large one."),
    completed(input_tokens=1_312, output_tokens=486),
    title("A ridge walk before the rain ⛰️"),
)

ASKS = script(
    "asks",
    started(persona="asks"),
    think(
        "A dinner for six, on a weekday, in a kitchen with two rings. It should be one pot, and the shopping must fit "
        "into half an hour. I know the season and the kitchen, but not who is coming."
    ),
    call(
        "call_1",
        "market.today",
        {"stall": "Bürkliplatz", "season": "late spring"},
        gives={"good": ["peas", "mint", "trout", "asparagus"]},
    ),
    say(
        "The market is at its best: peas, mint, the last asparagus, trout from the lake. Before I go on, one thing:\n\n"
    ),
    ask("req_1", "Does anybody at the table eat no fish?", answer="One of us is vegetarian."),
    think("So the fish goes on the side and the pot stands without it. Risotto carries both, and it waits for nobody."),
    say("Then the pot is a risotto and the trout a guest at its side. 🌿\n\n"),
    say("1. *18:20* Shell the peas with whoever comes first; the pods make the broth.\n"),
    say("2. *19:00* Rice, onion, a glass of white wine. Stir, talk, stir.\n"),
    call(
        "call_2",
        "list.write",
        {"name": "six at table", "items": ["400 g rice", "1 kg peas", "mint", "2 trout", "lemon"]},
        gives={"saved": True},
    ),
    say("3. *19:22* Peas, mint, lemon, off the heat. Trout in the other pan, four minutes a side.\n\n"),
    say("The list is saved under “six at table”. Bon appétit · いただきます · en Guete!"),
    completed(input_tokens=1_048, output_tokens=391),
    title("Risotto for six 🍋"),
)

FAILING = script(
    "failing",
    started(persona="failing"),
    think(
        "Three years of river levels, one number an hour. Before I draw anything I look for holes: a gauge that "
        "froze in winter reads like a drought."
    ),
    call(
        "call_1",
        "gauge.read",
        {"river": "Töss", "years": [2022, 2023, 2024]},
        gives={"rows": 26_304, "holes": 7},
        takes_ms=320,
    ),
    say("I have all 26,304 readings, and there are seven holes in them, each of them in a frost week ❄️. "),
    say("I will leave them open in the chart instead of drawing a line across: a straight line would be a claim.\n\n"),
    say("Next I lay the three years over each other, week by week, so that the spring floods stand side by side. "),
    call(
        "call_2",
        "chart.render",
        {"kind": "small multiples", "weeks": 52, "width": 960},
        gives={"state": "queued"},
        takes_ms=420,
    ),
    think("The renderer took the job and says nothing. Two more tries are fair; after that it is better to say so."),
    say("The chart is with the renderer; while it draws, here is what the numbers say on their own: the flood of "),
    say("2024 came eleven days earlier than the one before, and it"),
    failed("tool.unavailable", "chart.render did not answer within 30 s, after 3 tries"),
)

SCRIPTS: Mapping[str, Script] = MappingProxyType({run.name: run for run in (WRITER, ASKS, FAILING)})
"""By persona; a POST without one of these takes them in turn."""
