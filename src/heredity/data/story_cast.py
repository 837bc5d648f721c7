"""Who and what the generated stories are about: tables whose first line names the slots a row fills."""

from __future__ import annotations

GIRLS = (
    "Lily Mia Anna Ella Rosie Nora Zoe Lucy Clara Ruby Molly Hazel Ivy Sara Tilly Emma Daisy Maya Penny June Wendy Fern "
    "Bella Nina Alice Poppy Greta Luna Kate Sophie"
).split()
BOYS = (
    "Tim Ben Max Leo Sam Tom Jack Finn Oscar Hugo Theo Will Eli Noah Felix Toby Sid Ravi Omar Luke Pete Milo Henry Carl "
    "Anton Jamie Dan Rufus Kofi Ned"
).split()
CREATURES = ("bear", "mouse", "kitten", "puppy", "hedgehog", "fox", "penguin", "lamb")

HELPERS = (
    ("Mom", "she"), ("Dad", "he"), ("Grandma", "she"), ("Grandpa", "he"), ("Aunt Rose", "she"), ("Uncle Bob", "he"),
    ("Mama", "she"), ("Papa", "he"), ("Aunt May", "she"), ("Uncle Joe", "he"),
)  # fmt: skip

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

TABLES = (
    """
trait
cheerful
curious
kind
brave
clever
playful
shy
gentle
lively
friendly
helpful
dreamy
""",
    """
day
sunny
windy
warm
bright
lovely
cool
beautiful
golden
""",
    """
color
red
blue
green
yellow
purple
pink
white
brown
silver
striped
""",
    """
the_place      | at_place         | spot
the park       | in the park      | under the big oak tree
the beach      | at the beach     | behind a tall sand hill
the forest     | in the forest    | under a pile of leaves
the farm       | on the farm      | behind the old barn
the garden     | in the garden    | between the rose bushes
the lake       | by the lake      | next to the little boat
the playground | on the playground | under the slide
the meadow     | in the meadow    | in the tall grass
the river      | by the river     | near the wooden bridge
the market     | at the market    | behind the apple stand
the hill       | on the hill      | beside a round stone
the school     | at the school    | under the long bench
the pond       | by the pond      | among the reeds
the town square | in the town square | next to the fountain
""",
    """
thing      | play
ball       | kick the ball
kite       | fly the kite
toy boat   | sail the toy boat
drum       | play the drum
toy car    | race the toy car
doll       | dress the doll
wagon      | pull the wagon
scooter    | ride the scooter
teddy bear | have tea with the teddy bear
toy train  | drive the toy train
jump rope  | skip with the jump rope
puppet     | put on a show with the puppet
whistle    | blow the whistle
toy plane  | throw the toy plane
""",
    """
animal   | cry     | meal               | home
rabbit   | squeak  | a carrot           | a burrow under the hedge
duck     | quack   | some corn          | a nest in the reeds
squirrel | chirp   | a nut              | a hole in the oak tree
frog     | ribbit  | a juicy berry      | a pond with lilies
bird     | tweet   | a few seeds        | a nest in the apple tree
cat      | meow    | a bowl of milk     | a basket by the stove
dog      | woof    | a piece of sausage | a red dog house
goat     | maa     | some fresh grass   | a small shed on the hill
pig      | oink    | a sweet pear       | a pen full of straw
turtle   | hum     | a leaf of lettuce  | a hollow by the water
deer     | snuffle | a red apple        | a clearing in the woods
raccoon  | chitter | a slice of bread   | a hollow log
beaver   | churr   | a tender twig      | a lodge of sticks
hen      | cluck   | a handful of corn  | a coop beside the barn
pony     | neigh   | a lump of sugar    | a stable with a green door
monkey   | ooh     | a ripe banana      | a tree house full of vines
""",
    """
food
apple pie
carrot soup
banana bread
honey cake
noodle soup
berry jam
cheese bread
pumpkin pie
rice pudding
plum cake
vegetable stew
lemon cake
""",
    """
breakable
blue cup
glass bowl
flower vase
tea pot
picture frame
white plate
clay jug
music box
""",
    """
plant
sunflower
pumpkin
bean plant
tomato plant
strawberry bush
cherry tree
melon
pea plant
""",
    """
skill              | skill_fail
ride a bike        | fell into the grass
swim               | swallowed a lot of water
tie a bow          | made a big knot
whistle a tune     | only blew air
climb the rope     | slid back down
skate on the ice   | landed on the cold ice
catch a ball       | dropped the ball
read a whole book  | mixed up all the letters
dance on tiptoe    | stumbled over a chair
play a song        | hit all the wrong notes
draw a horse       | drew something like a potato
row a boat         | went round and round in a circle
""",
    """
fear          | fear_event                              | fear_comfort                                     | fear_deed
the dark      | all the lamps in the house went out     | The dark is only the day with its eyes closed.   | walked through the dark hall
thunder       | a storm came and the thunder roared     | Thunder is just the clouds playing the drums.    | went to the window and watched the storm
deep water    | everyone jumped into the lake           | I will hold you until you can float.             | put one foot in the water, and then the other
the big slide | everyone wanted to go down the big slide | You can sit between my knees the first time.    | climbed up and slid all the way down
dogs          | a big dog came running along            | See how it wags its tail? It wants to be friends. | held out a hand and petted the dog
the doctor    | it was time to go to the doctor         | The doctor is there to make you feel well.       | let the doctor look into both ears
high places   | they came to a very high bridge         | Look straight ahead and hold on to me.           | walked over the bridge, step by step
spiders       | a spider came down from the ceiling     | It is much smaller than you, and it can spin.    | looked at the spider from very close
loud noises   | the fire truck came with its siren on   | That sound means that help is on its way.        | waved to the driver of the fire truck
new places    | they went to a new school               | Every friend was a stranger once.                | walked in and said hello to everyone
""",
)
