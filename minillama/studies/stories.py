"""13a. Stories: what a small model can learn.

Written by notebooks/13a_stories.ipynb: edit it there.
"""

import random
from dataclasses import dataclass


GIRLS = "Ada Anna Clara Ella Emma Ines Julia Lena Lily Lucy Maya Mia Nina Nora Rosa Ruth Sara Tara Yuki Zoe".split()
BOYS = "Adam Ben Carl David Emil Finn Hugo Ivan Jack Leo Luis Max Noah Omar Paul Ravi Sam Theo Tom Will".split()
BEASTS = "old owl,clever fox,kind bear,small mouse,shy rabbit,fat goose,wise crow,thin cat,big toad,quick squirrel".split(
    ","
)
COLOURS = "red blue green yellow white black brown silver golden pink".split()
THINGS = "kite hat scarf book flag bag drum cup boat doll clock lamp bell key ring ball whistle spoon pipe feather".split()
SOFT, HARD = THINGS[:6], THINGS[6:12]  # what can tear, what can break
FOODS = "bread,an apple,some cheese,a pear,some nuts,a cake,some honey,a carrot,some berries,a pie".split(
    ","
)
PLACES = """in the garden,by the river,in the forest,on the hill,at the beach,in the park,near the old mill,at the market,
by the lake,in the village""".replace("\n", "").split(",")
SPOTS = """under a bush,behind a big stone,beside the bench,in the tall grass,under a log,behind the fence,near the well,
between two roots,beside the path,inside an empty barrel""".replace("\n", "").split(",")
STUCK = {  # where a thing may end up, and what brings it back
    "in the top of a tall tree": ("ladder", "long stick"),
    "on the roof of a house": ("ladder", "long stick"),
    "at the bottom of a deep hole": ("rope", "hook"),
    "far out in the water": ("net", "little raft"),
}
FEARS = {  # what one may be afraid of, what one must do then, what helps, and how
    "the dark": ("go through a dark cellar", "a candle", "The light was small, but it was enough"),
    "deep water": ("cross the river", "a belt of cork", "The belt was light, and it held"),
    "thunder": ("walk through the storm", "a song", "The song was louder than the storm"),
    "the big dog": ("walk past the big dog", "a bone", "The dog wagged its tail and lay down"),
}


PLOTS = {  # a story is one way to say each line; ways are separated by /
    "lost": """
- One {time}, {A} went out. {A.She} took {A.her} {colour} {thing} and played {place}.
/ {A} had a {colour} {thing} and took it everywhere. One {time}, {A.she} was {place} with it.
/ It was a {weather} {time}. {A} was {place}, and {A.she} had {A.her} {colour} {thing} with {A.them}.
- {A.She} played until {A.she} was tired. / {A.She} ran and jumped and sang. / {A.She} fell asleep for a while.
- When {A.she} wanted to go home, the {thing} was gone. / Then {A.she} saw that the {thing} was not there any more.
- {A} looked {spot}, but there was nothing. / {A.She} looked {spot}, but found only {food}.
- Then {A.she} met {B.intro}. "Why are you so sad?" asked {B}. / {B.Intro} came by. "What are you looking for?" asked {B}.
- "I have lost my {colour} {thing}," said {A}. / "My {thing} is gone," said {A}. "It is {colour}."
- "I saw something {colour} {spot2}," said {B}. / {B.Name} thought for a while. "Let us look {spot2}," {B.she} said.
- They went there together, and there it was: the {colour} {thing}! / They ran there, and {spot2} lay the {colour} {thing}.
- "Thank you, {B.call}!" said {A}. {A.She} gave {B} {food}, because {B.she} had found the {thing}.
/ {A} was so happy that {A.she} let {B} play with the {thing}.
/ From that day on, {A} held {A.her} {thing} tight, and {A} and {B} were friends.""",
    "stuck": """
- {A} had a new {colour} {thing}. / {A}'s grandmother had given {A.them} a {colour} {thing}.
/ For {A.her} birthday {A} got a {colour} {thing}.
- {A.She} wanted to show it to {A.her} friends {place}. / {A.She} went out to play with it {place}.
- But there came a strong wind, and soon the {thing} was {stuck}. / But {A.she} threw it too far, and it landed {stuck}.
- {A} could not reach it. {A.She} sat down and cried. / {A} tried and tried, but it was too far away.
- {B.Intro} heard {A.them}. "What is wrong?" asked {B}. / Then {B.intro} came along. "Can I help?" asked {B}.
- "My {thing} is {stuck}," said {A}. / "Look, my {colour} {thing} is {stuck}," said {A}.
- "I have a {tool} at home," said {B}. "Wait here!" / "Then we need a {tool}," said {B}, and {B.she} went to get one.
- Soon {B} came back. With the {tool} they got the {thing}. / {B.Name} brought the {tool}, and it was easy to get the {thing}.
- "You are a true friend, {B.call}," said {A}. / {A} laughed and held the {colour} {thing} in {A.her} arms.
- "Next time I will be more careful," said {A}. / They played with the {colour} {thing} until it was dark.
/ Then {A} and {B} ate {food} together.""",
    "broken": """
- {A} wanted to play with {B}'s {colour} {thing}. "May I have it for a day?" {A.she} asked {B}.
/ One {time}, {A} asked {B} for {B.her} {colour} {thing}. "Only for today," {A.she} said.
- "Yes," said {B}, "but be careful." / "Of course," said {B}. "We are friends."
- {A} took the {thing} and ran. But {A.she} fell over a stone, and the {thing} {broke}.
/ {A} played with it {place}. Then {A.she} stepped on it, and the {thing} {broke}.
- {A} was afraid. What would {B} say? / "Oh no," said {A}. "What shall I do now?"
- First {A.she} wanted to hide the {thing} {spot}. But that was not right. / {A.She} thought about it all night.
- So {A} went to {B} and told the truth. "I am sorry. Your {colour} {thing} {broke}," {A.she} said.
- {B} looked at the {thing} for a while. "I am glad that you told me," {B.she} said.
/ {B} was sad, but not angry. "It was brave to tell me," {B.she} said.
- "We can mend it with {mend}," said {B}. / "Do you have {mend}?" asked {B}. "Then we can mend it."
- They took {mend} and worked until evening. Then the {thing} was as good as new.
/ They sat down with {mend}, and soon the {colour} {thing} was whole again.
- {A} was glad that {A.she} had told the truth. / "Thank you, {B}," said {A}. / And {B} let {A} play with the {thing} again.""",
    "hungry": """
- {A} walked {place} with {food} in {A.her} {colour} bag.
/ One {time}, {A} was on {A.her} way home. In {A.her} {colour} bag {A.she} had {food}.
- There sat {C.intro}, thin and cold. "I am so hungry," said {C}.
/ On the way {A.she} met {C.intro}. "I have not eaten for days," said {C}.
- {A} was hungry too, but {A.she} gave {C} all {A.she} had. / "Take this," said {A}, and opened the {colour} bag.
- "I will not forget this," said {C}. / {C.Name} ate it all and thanked {A}.
- Later it grew dark, and {A} could not find the way. / Then fog came, and {A} did not know where {A.she} was.
- "Help!" called {A}. Who came? It was {C}! / {A} began to cry. Then {A.she} heard a voice. It was {C}.
- "You gave me {food}," said {C}. "Now I will show you the way." / "You helped me, so I will help you," said {C}.
- {C.Name} went in front, and {A} followed with {A.her} {colour} bag. / {C.Name} brought {A.them} to {A.her} door.
- At home {A} told everyone about {C}. / Since then {A} always has {food} in {A.her} {colour} bag for {C}.""",
    "fear": """
- {A} was afraid of {fear}. / Everybody knew that {A} was afraid of {fear}.
/ There was one thing that {A} did not like at all: {fear}.
- One {time}, {A.she} had left {A.her} {colour} {thing} {spot}. To get it, {A.she} had to {cross}.
/ One {time}, {A} wanted {A.her} {colour} {thing}. It was {spot}, and {A.she} had to {cross} to get it.
- "I can not do it," said {A}. / {A} stood still. {A.Her} knees were weak.
- {B.Intro} saw it. "Are you afraid?" asked {B}. "Yes, of {fear}," said {A}.
/ Then {B.intro} came. "What is it?" asked {B}. "I am afraid of {fear}," said {A}.
- "So was I," said {B}. "Then somebody gave me {remedy}." / "I know what helps," said {B}. "Take {remedy} with you."
- {A} took {remedy} and went, step by step. {comfort}. / So {A} went with {remedy}, and {B} went with {A.them}. {comfort}.
- And there, {spot}, was the {colour} {thing}. / Soon {A} held the {colour} {thing} in {A.her} hands.
- "I did it!" called {A}. / "You see?" said {B}. "You are brave." / {A} was not afraid of {fear} any more.
- Now {A} gives {remedy} to everyone who is afraid of {fear}. / {A} thanked {B} and went home with the {colour} {thing}.""",
    "found": """
- One {time}, {A} found a {colour} {thing} {spot}. / {A} was {place}. There, {spot}, lay a {colour} {thing}.
- It was beautiful, and {A} wanted to keep it. / "How nice!" said {A}. "Whose is it?"
- {A.She} asked {B.intro}, "Is this {thing} yours?" "No," said {B}, "mine is {colour2}."
/ {A.She} showed it to {B.intro}. "I have a {thing} too," said {B}, "but mine is {colour2}."
- "It belongs to {D}," said {B}. "{D.She} has looked for it all day." / "I think {D} lost a {thing}," said {B}.
- So {A} went to {D}. "Have you lost something?" {A.she} asked. / {A} ran to {D}'s house. "What have you lost?" {A.she} asked.
- "Yes, a {thing}," said {D}. "What colour?" asked {A}. "It is {colour}," said {D}. / "My {colour} {thing}!" said {D}.
- {A} gave {D} the {colour} {thing}. / "Here it is," said {A}, and gave it back. "It was {spot}."
- {D} was so glad that {D.she} gave {A} {food}. / "You could have kept it," said {D}. "You are honest, {A}."
- {A} had no {thing} now, but {A.she} had a new friend. / {A} shared {food} with {B} and {D}.""",
}


@dataclass(frozen=True)
class Someone:
    """A character: how a story first speaks of it, how it goes on, how others call it, and its
    pronouns.
    """

    name: str
    intro: str
    call: str
    she: str
    her: str
    them: str

    Name = property(lambda self: self.name[0].upper() + self.name[1:])
    Intro = property(lambda self: self.intro[0].upper() + self.intro[1:])
    She = property(lambda self: self.she.capitalize())
    Her = property(lambda self: self.her.capitalize())

    def __str__(self):
        return self.name


def person(name: str) -> Someone:
    """A girl or a boy."""
    pronouns = ("she", "her", "her") if name in GIRLS else ("he", "his", "him")
    return Someone(name, name, name, *pronouns)


def beast(words: str) -> Someone:
    """An animal: "an old owl", later "the owl", spoken to as "owl"."""
    noun = words.split()[-1]
    return Someone(
        "the " + noun,
        ("an " if words[0] in "aeiou" else "a ") + words,
        "dear " + noun,
        "it",
        "its",
        "it",
    )


def held_back(name: str, thing: str) -> bool:
    """Whether stories of this child and this thing are kept for validation: one pair in ten."""
    return (2 * (GIRLS + BOYS).index(name) + THINGS.index(thing)) % 10 == 0


def consequences(thing: str, fear: str) -> dict:
    """The slots that follow from a story's thing and its fear."""
    cross, remedy, comfort = FEARS[fear]
    broke, mend = ("was torn", "needle and thread") if thing in SOFT else ("was broken", "glue")
    return dict(cross=cross, remedy=remedy, comfort=comfort, broke=broke, mend=mend)


def cast(rng: random.Random, plot: str, validation: bool) -> dict:
    """Who and what a story is about."""
    while True:
        names, thing = (
            rng.sample(GIRLS + BOYS, 3),
            rng.choice(SOFT + HARD if plot == "broken" else THINGS),
        )
        if held_back(names[0], thing) == validation:
            break
    hero, friend, third = map(person, names)
    animal = beast(rng.choice(BEASTS))
    colour, colour2 = rng.sample(COLOURS, 2)
    spot, spot2 = rng.sample(SPOTS, 2)
    stuck, fear = rng.choice(list(STUCK)), rng.choice(list(FEARS))
    return dict(
        A=hero,
        B=animal if plot != "broken" and rng.random() < 0.4 else friend,
        C=animal,
        D=third,
        thing=thing,
        colour=colour,
        colour2=colour2,
        spot=spot,
        spot2=spot2,
        place=rng.choice(PLACES),
        food=rng.choice(FOODS),
        stuck=stuck,
        tool=rng.choice(STUCK[stuck]),
        fear=fear,
        time=rng.choice(["morning", "day", "evening"]),
        weather=rng.choice(["warm", "cold", "bright", "windy"]),
        **consequences(thing, fear),
    )


def ways(plot: str) -> list[list[str]]:
    """For each line of a plot, the ways to say it."""
    return [
        line.split(" / ") for line in " ".join(PLOTS[plot].split()).removeprefix("- ").split(" - ")
    ]


def choose(number: int, validation: bool = False) -> tuple[str, list[str], dict]:
    """What the story of that number is made of: its plot, a way for each line, and its cast."""
    rng = random.Random(f"{'validation' if validation else 'training'} {number}")
    plot = rng.choice(list(PLOTS))
    return plot, [rng.choice(line) for line in ways(plot)], cast(rng, plot, validation)


def story(number: int, validation: bool = False) -> str:
    """The story of that number, the same at every call and on every machine; or a validation
    story.
    """
    _, lines, about = choose(number, validation)
    return " ".join(lines).format(**about)
