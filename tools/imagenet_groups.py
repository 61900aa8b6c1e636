"""Make cvt_cli/checkpoint/imagenet_groups.tsv: everyday groups of ImageNet's 1,000 classes.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python tools/imagenet_groups.py wordnet/usr/share/wordnet/data.noun

The classes of ImageNet are nouns of WordNet 3.0, and WordNet is a tree (nearly: a noun may have
several parents). `GROUPS` below names nodes of that tree. A class is in the group of the nearest
node above it, or of itself. A class with no such node is in no group.
"""

import sys
from collections import deque
from pathlib import Path

from cvt_cli.checkpoint.imagenet import SYNSETS

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "cvt_cli" / "checkpoint"

# Each group and the ids of its nodes, which are in the same order as the words behind them. What is
# in the group "-" is in none.
GROUPS = """
antelope            n02419796  antelope
ape                 n02470325  ape
bear                n02131653  bear
big cat             n02127808 n02124623  big cat, wildcat
bird                n01503061  bird
cat                 n02121808  domestic cat
cattle              n02402010 n02407959 n02410509  bovine, Old World buffalo, bison
dog                 n02084071  dog
elephant            n02503517 n01871265  elephant, tusker
fox                 n02118333  fox
goat                n02416519  goat
horse               n02374451  horse
lemur               n02496913  lemur
marsupial           n01874434  marsupial
mongoose            n02134971  viverrine
monkey              n02484322  monkey
panda               n02507649  procyonid
pig                 n02395003  swine
rabbit              n02323449  lagomorph
rodent              n02329401  rodent
sheep               n02411705 n02414578  sheep, wild sheep
weasel              n02441942 n02442845  weasel, mink
weasel              n02443114 n02443484  polecat, black-footed ferret
whale               n02062744  whale
wild dog            n02115335  wild dog
wolf                n02114100  wolf
chicken             n01514668 n01514859  cock, hen
crocodile           n01696633  crocodilian reptile
frog                n01639765  frog
lizard              n01674464  lizard
salamander          n01629276  salamander
snake               n01726692  snake
turtle              n01662784  turtle
fish                n02512053  fish
ray                 n01495701  ray
shark               n01482330  shark
beetle              n02164464  beetle
butterfly           n02274259  butterfly
crab                n01976957  crab
insect              n02159955  insect
lobster             n01982650 n01985128  lobster, crayfish
snail               n01942177  gastropod
spider              n01772222  spider
worm                n01922303  worm
fungus              n12992868 n07734744  fungus, mushroom
flower              n11669921  flower
fruit               n07705931  edible fruit
vegetable           n07707451 n12144580 n13133613  vegetable, corn, ear
bread               n07679356  bread
dessert             n07609840  dessert
drink               n07881800  beverage
sandwich            n07695965  sandwich
sauce               n07829412 n07810907  sauce, condiment
meal                n07557434 n07579787 n07831146  dish, plate, carbonara
airplane            n03510583  heavier-than-air craft
balloon             n03666917  lighter-than-air craft
bicycle             n02834778 n04509417 n04482393  bicycle, unicycle, tricycle
boat                n02858304 n04128499  boat, sailboat
bus                 n02924116  bus
car                 n02958343 n03444034 n03445924  car, go-kart, golfcart
cart                n02970849 n03484083  cart, handcart
motorcycle          n03790512 n03791053  motorcycle, motor scooter
ship                n04194289 n04128837  ship, sailing vessel
sled                n04235291  sled
tractor             n04465501 n03322940  tractor, farm machine
train               n04468005 n03684823 n02959942 n04335435  train, locomotive, car, streetcar
truck               n04490091 n04252225  truck, snowplow
appliance           n02729837 n04330267  appliance, stove
bag                 n02773037 n02974697  bag, case
ball                n02778669  ball
bed                 n02818832 n02766320  bed, baby bed
bottle              n02876657  bottle
bowl                n02880940  bowl
box                 n02883344  box
broom or brush      n02908217 n03039947  brush, cleaning implement
camera              n02942699  camera
chair               n03001627 n02828884  chair, bench
clock               n04437953  timepiece
clothing            n03051540  clothing
coat                n03057021 n03980874 n03045698  coat, poncho, cloak
computer            n03918480 n03614007 n03793489  personal computer, keyboard, mouse
computer            n03916720 n03211117  peripheral, display
pot or pan          n03990474 n03880531 n03101156 n03259280  pot, pan, cooker, Dutch oven
cosmetics           n04447443  toiletry
cup                 n03241496 n03438257 n07930864  drinking vessel, glass, cup
curtain             n03151077 n02851099  curtain, blind
dress               n03236735  dress
furniture           n03405725  furniture
glasses             n04272054 n04355933  spectacles, sunglass
gun                 n03467984  gun
hat                 n03497657 n02954340  hat, cap
helmet              n03513137 n03513376  helmet, helmet (armor)
lamp                n03636248 n03636649  lamp, lamp (furniture)
lamp                n04456115 n03637318  torch, lampshade
mask                n03725035 n03724870 n03868863  mask, mask (disguise), oxygen mask
music player        n02757462 n04392985 n02988304  audio system, tape player, CD player
music player        n02979186 n04041544  cassette player, radio
musical instrument  n03800933 n02880546  musical instrument, bowed stringed instrument
guitar              n03467517 n02787622  guitar, banjo
piano               n03928116  piano
pen                 n03906997  pen
screen              n03782006 n04404412  monitor, television
screen              n04152593 n03529860  screen, home theater
shirt               n04197391 n04370048  shirt, sweater
shoe                n03380867  footwear
skirt               n04230808  skirt
sock                n03540267  hosiery
sofa                n04256520  sofa
spoon               n04284002 n03633091  spoon, ladle
sports equipment    n04285146 n04228054  sports equipment, ski
sports equipment    n04039381 n04023962  racket, punching bag
swimsuit            n04371563 n03710637  swimsuit, maillot
table               n04379243 n04379964  table, table (dining)
tank                n04389033 n03478589  tank, half track
telephone           n04401088  telephone
tie                 n03815615  necktie
tool                n04451818  tool
towel               n04459362 n03207743  towel, dishrag
bridge              n02898711  bridge
building            n02913152 n02980441 n04005630 n03697007  building, castle, prison, lumbermill
fence               n03327234  fence
house of worship    n03953416 n03781244  place of worship, monastery
roof                n04105068  roof
shop                n04202417 n03461385  shop, grocery store
tent                n04411264 n04613696  tent, yurt
mountain            n09359803 n09246464  mountain, cliff
shore               n09433442 n09399592 n09421951  shore, promontory, sandbar
-                   n03590841 n03891332  jack-o'-lantern, parking meter
-                   n04125853 n04447861  safety belt, toilet seat
"""


def read_parents(database: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read WordNet's nouns.

    Args:
        database: its file data.noun; wndb(5WN) says what is in a line.

    Returns:
        The ids of each noun's parents, and its first word.
    """
    parents, words = {}, {}
    for line in database.read_text("utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields = line.split(" ")
        pointers = 4 + 2 * int(fields[3], 16)
        starts = range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4)
        links = [fields[start : start + 3] for start in starts]
        synset = f"n{fields[0]}"
        words[synset] = fields[4].replace("_", " ")
        parents[synset] = [
            f"n{offset}" for kind, offset, part in links if kind[0] == "@" and part == "n"
        ]
    return parents, words


def group_of(synset: str, nodes: dict[str, str], parents: dict[str, list[str]]) -> str | None:
    """Find the group of the nearest node. Of two that are equally near, the first parent's wins."""
    queue = deque([synset])
    while queue:
        each = queue.popleft()
        if each in nodes:
            return nodes[each]
        queue += parents[each]
    return None


def main(database: Path) -> None:
    """Write the table."""
    parents, words = read_parents(database)
    nodes = {}
    for line in GROUPS.strip().splitlines():
        group, rest = line[:20].strip(), line[20:]
        ids, _, named = rest.partition("  ")
        for synset, word in zip(ids.split(), named.split(", "), strict=True):
            if words[synset] != word.partition(" (")[0]:
                sys.exit(f"{synset} is {words[synset]}, not {word}")
            nodes[synset] = group
    names = (CHECKPOINT / "imagenet_names.txt").read_text("utf-8").splitlines()
    licence = names[names.index("# WordNet Release 3.0") : -len(SYNSETS)]
    head = [
        "# Everyday groups of ImageNet-1k's classes: WordNet id, tab, group. Made from WordNet by",
        "# tools/imagenet_groups.py.",
        "#",
    ]
    found = {synset: group_of(synset, nodes, parents) for synset in SYNSETS}
    rows = [f"{synset}\t{group}" for synset, group in found.items() if group not in (None, "-")]
    text = "\n".join([*head, *licence, *rows]) + "\n"
    (CHECKPOINT / "imagenet_groups.tsv").write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
