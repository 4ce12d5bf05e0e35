// The stories of the embedded corpus: a hero, a friend, a thing and a place that return through
// the paragraphs with their names, pronouns and belongings. See grammar.h for the notation.
#include "tools/corpus/grammar.h"

namespace lathe {

namespace {

constexpr std::string_view kStories = R"GRAMMAR(
story
  2* {hero=person} and the {look=look} {thing=thing}\n{body}\n\n
  The {look=look} {thing=thing} of {hero=person}\n{body}\n\n
  How {hero=person} found a friend, and {look=look.a} {thing=thing}\n{body}\n\n

# The friend, the place and the trade stay the same in all of them.
body
  {opening} {friend=friend}, {friend.a} {trade=trade}. {scenes}\
  {loss} {quest=place.into}. {way} {scenes}\
  {friend_helps}{meeting}\n{scenes}\
  {finding} {scenes}\
  {ending}
  {opening} {friend=friend}, {friend.a} {trade=trade}. {home}\n{meeting}\n\
  {loss} {quest=place.into}. {scenes}\
  {friend_helps}{talk} {scenes}\
  {ending} {scene}

opening
  2* {Time} there lived a {trait} {hero.child} called {hero.name}, who {habit} with
  {hero.name} was a {trait} {hero.child}. {Time} {hero.they} {habit} with

time:
  long ago, once upon a time, in the year of the great {weather_noun}, many {season}s ago,
  in those days, before the {weather_noun} came

weather_noun:
  frost, flood, drought, comet, snow, harvest

season:
  summer, winter, spring, autumn

trait:
  curious, quiet, brave, clever, stubborn, cheerful, dreamy, restless, gentle, lonely, patient,
  young, proud, merry, tall, shy

habit:
  shared a house, went to school, used to play chess, worked every day, often went fishing,
  liked to walk, kept a garden, sold {goods} at the market, sang in the choir, baked bread

goods:
  apples, candles, ribbons, fish, old books, honey, umbrellas, wool, cheese, postcards

person(name, they, them, their, child)
  Anna | she | her | her | girl
  Bruno | he | him | his | boy
  Clara | she | her | her | girl
  Dorothy | she | her | her | woman
  Edmund | he | him | his | man
  Felix | he | him | his | boy
  Greta | she | her | her | woman
  Hugo | he | him | his | boy
  Ivy | she | her | her | girl
  Jasper | he | him | his | man
  Katherine | she | her | her | woman
  Leopold | he | him | his | man
  Mabel | she | her | her | girl
  Ned | he | him | his | boy
  Olive | she | her | her | girl
  Peter | he | him | his | boy
  Quentin | he | him | his | man
  Rosa | she | her | her | girl
  Simon | he | him | his | boy
  Tilda | she | her | her | girl
  Ursula | she | her | her | woman
  Victor | he | him | his | man
  Winifred | she | her | her | woman
  Yara | she | her | her | girl
  Zeno | he | him | his | boy

friend(name, they, them, their, a)
  Alfred Vane | he | him | his | an old
  Beatrix Moss | she | her | her | a kind
  Conrad Lund | he | him | his | a young
  Delia Frost | she | her | her | a famous
  Erasmus Pike | he | him | his | a poor
  Flora Quill | she | her | her | an honest
  Gideon Marsh | he | him | his | a tired
  Hester Blum | she | her | her | a strict
  Isaac Thorn | he | him | his | a retired
  Judith Oakley | she | her | her | a merry
  Kasper Wren | he | him | his | a wise
  Lydia Stone | she | her | her | a busy
  Magnus Hale | he | him | his | a clumsy
  Nora Juniper | she | her | her | a cheerful
  Otto Underhill | he | him | his | a careful
  Petra Young | she | her | her | a clever

trade(name, tool, wares)
  clockmaker | a tiny screwdriver | clocks
  baker | a rolling pin | warm loaves
  sailor | a coil of rope | sea charts
  gardener | a pair of shears | tulips
  blacksmith | a heavy hammer | horseshoes
  painter | a wide brush | portraits
  doctor | a leather bag | bottles
  teacher | a piece of chalk | maps
  weaver | a wooden shuttle | carpets
  beekeeper | a thick veil | jars of honey
  fiddler | a bow without strings | violins
  miller | a sack of flour | sacks
  shepherd | a crooked stick | fleeces
  printer | a pot of ink | newspapers

look(plain, a)
  silver | a silver
  golden | a golden
  wooden | a wooden
  broken | a broken
  painted | a painted
  old | an old
  tiny | a tiny
  crystal | a crystal
  rusty | a rusty
  copper | a copper
  empty | an empty
  magic | a magic
  green | a green
  purple | a purple
  ivory | an ivory
  folding | a folding

thing(name, holds)
  lantern | a little flame
  compass | a trembling needle
  whistle | a single clear note
  key | a mark like a star
  teapot | the smell of mint
  mirror | somebody else's face
  drum | the sound of thunder
  box | three dry leaves
  kite | a letter tied with string
  bell | an old prayer in thin letters
  ring | a stone like an eye
  telescope | a view of the moon
  spoon | a taste of salt
  chest | nothing but sand
  flute | a sad song
  crown | nine dull pearls
  globe | a country nobody knew
  basket | a sleeping kitten

# A paragraph's rest: sentences without a plot, dense in words.
scenes
  {scene} {scene} {scene} {scene}\n
  {scene} {scene} {scene} {scene} {scene} {scene}\n
  {scene} {meeting}\n

# A stranger who stays for the rest of the paragraph.
meeting
  A {mood} {who=being} {did} {where}. {about} {scene} {about}
  They met a {who=being}, {mood} and {mood}. {about} {about} {about}
  Nobody but a {mood} {who=being} {did} {where}. {scene} {about}

about
  The {who.text} {took} {item} {where}.
  {Adverb} the {who.text} {took} {item}.
  "{Kind} {object}s," muttered the {who.text}, "and {kind} {object}s!"
  {hero.name} {took} the {who.text}'s {object} {where}.
  It was a {kind} {spot} for a {who.text}; even so, it {did} {adverb}.

scene
  The {being} {took} {item} {where}.
  2* {hero.name} {took} {item}, and {friend.they} {took} {item}.
  2* {hero.They} {took} {item} {where}.
  {friend.name} {did} {where}, {mood} and {mood}.
  {Count} {mood} {being}s {did} {where}; they {took} {item}.
  {Adverb} {hero.they} {took} the {being}'s {kind} {object}.
  {Preposition} the {spot} {lay} {one_item}, and {hero.name} {took} it {adverb}.
  The {spot} was {kind}, the {object}s were {kind}, the {being} {did} {adverb}.
  "My {object} is {kind}," said a {mood} {being}, "my {object}s are {kind}."

item
  4* {one_item}
  {count} {object}s

one_item
  2* a {kind} {object}
  the {object}
  {hero.their} {kind} {object}

lay:
  lay, stood, gleamed, waited, remained, grew, appeared, hung

where
  2* {preposition} the {spot}
  {preposition} a {kind} {spot}
  {adverb}

being:
  beggar, bishop, butcher, carpenter, cat, cook, crow, dancer, dog, donkey, dragon, duke, dwarf
  farmer, fishmonger, frog, giant, goat, goose-girl, hunter, hangman, juggler, judge, king
  lamb, magician, mayor, miner, monk, nun, nurse, parrot, pilgrim, pirate, postman
  queen, rabbit, robber, scholar, servant, soldier, spider, tailor, thief's cousin, tiger, toad
  tinker, turtle, vicar, widow, wizard, yodeller, zookeeper

object:
  barrel, blanket, book, boot, bottle, bucket, button, cake, candle, carpet, chair, cheese, coin
  cup, curtain, dagger, feather, flag, fork, glove, hammer, hat, jar, jewel, kettle
  ladder, lemon, letter, map, marble, medal, melon, nail, necklace, needle, pancake, parcel, pear
  pencil, pillow, pipe, pot, pumpkin, puzzle, ribbon, rope, saddle, sausage, shawl, shovel, sock
  stamp, sword, table, ticket, trumpet, turnip, vase, wagon, walnut, wheel, yellow bean, zither

spot:
  barn, bakery, bridge, cellar, chapel, churchyard, corner, crossroad, fence, field, fountain
  garden, gate, graveyard, greenhouse, hedge, kitchen, lake, library, market, meadow, mill
  palace, pier, pond, prison, pulpit, quarry, railway station, roof, ruin, school, shed, ship
  square, stable, staircase, tavern, theatre, tower, tree, tunnel, village, wall, well, zoo

kind:
  big, bitter, black, blue, broad, cheap, clean, cold, cracked, crooked, curved, damp, dark, dirty
  dusty, famous, flat, foreign, forgotten, fresh, green, grey, heavy, holy, hot, huge, light, long
  lost, narrow, new, perfect, plain, pretty, red, round, rotten, sacred, secret, sharp, short
  slippery, small, soft, sour, square-cut, sticky, straight, stolen, sweet, thick, thin, useless
  valuable, warm, wet, white, worthless, yellow

mood:
  bald, bashful, blind, bored, careless, cruel, deaf, dizzy, drowsy, fat, foolish, friendly, grim
  greedy, happy, hungry, jealous, kind, lame, lazy, limping, lucky, mad, nervous, noble, nosy
  polite, puzzled, rude, sad, selfish, serious, silent, sly, smiling, solemn, strong, thirsty
  tiresome, vain, weak, wicked, worried

took:
  admired, borrowed, bought, broke, buried, burned, carried, chose, collected, copied, drew
  dropped, examined, exchanged, feared, fetched, filled, flung, followed, forgot, found, guarded
  hated, hid, hugged, kept, kicked, kissed, lifted, lost, loved, mended, moved, needed, noticed
  opened, owned, painted, picked, polished, pulled, pushed, remembered, sold, stole, stroked
  threw, touched, turned, washed, watched, wanted, weighed, wrapped

did:
  argued, bowed, coughed, danced, dreamed, dined, fainted, fasted, fiddled, giggled, grumbled
  hesitated, hummed, jumped, knelt, laughed, limped, listened, lingered, marched, paused, prayed
  quarrelled, rested, sang, sat, shivered, slept, sneezed, snored, stood, stumbled, swam, trembled
  vanished, waited, walked, wandered, wept, whistled, yawned

adverb:
  ably, alone, angrily, at dawn, bitterly, boldly, by moonlight, carefully, cleverly, daily
  everywhere, fast, for hours, gladly, hastily, in vain, in secret, just then, kindly, loudly
  lightly, merrily, neatly, often, once more, politely, proudly, quickly, rarely, sadly, silently
  slowly, softly, suddenly, too late, tenderly, unwillingly, very well, with joy, without hope

preposition:
  above, across, against, around, before, behind, below, beside, close to, far from, inside, near
  opposite, outside, past, under, within

# Where it happens, and what is met there.
place(name, into, met)
  by the harbour | to the harbour | {harbour}
  in the forest | into the forest | {forest}
  on the mountain | up the mountain | {mountain}
  near the river | down to the river | {river}
  in the desert | through the desert | {desert}
  behind the castle | to the castle | {castle}
  under the city | below the streets | {cellar}
  on the island | across to the island | {harbour}
  among the hills | over the hills | {mountain}
  in the museum | into the museum | {castle}

harbour:
  a {colour} boat, {count} gulls, a drunken captain, {count} wet nets, a smell of tar,
  the lighthouse, a whale far out at sea, {count} barrels

forest:
  {count} owls, a fox with {colour} eyes, a fallen oak, a hollow tree, {count} mushrooms,
  a hunter's hut, the track of a bear, {count} woodcutters

mountain:
  {count} goats, a cave full of bats, a cloud shaped like a ship, snow up to the knees, an eagle,
  a hermit in a {colour} coat, {count} pine trees, a bridge of rope

river:
  a ferry without a ferryman, {count} ducks, a mill with {colour} sails, a pike as long as an arm,
  {count} children on a raft, the reeds, a swan, {count} washerwomen

desert:
  {count} camels, a dry well, a caravan with {colour} flags, the bones of a horse,
  {count} scorpions, a mirage, {count} palm trees, a sleeping lizard

castle:
  a knight in armour, {count} guards, a portrait of a {colour} king, dust on every stair,
  {count} marble lions, the ghost of a cook, a spiral staircase, {count} locked doors

cellar:
  {count} rats, a river in the dark, pipes that sighed, a {colour} door,
  {count} forgotten bottles, an echo, a railway without trains, {count} bricked-up windows

count:
  two, three, four, seven, a dozen, nine, a hundred, countless

colour:
  blue, red, yellow, white, grey, black, pink, brown

home
  Each morning {friend.name} {set_out} {trade.tool} and {trade.wares}, and {hero.name} {watched}.
  The {trade.name} {taught} {hero.them} {lesson}, and {hero.they} {was_glad}.
  In {hero.their} pocket {hero.name} always carried {look.a} {thing.name}, which {origin}.
  Nobody knew why the {trade.name} kept {trade.tool} under {friend.their} pillow; {guess}.

set_out:
  laid out, cleaned, dropped, counted, looked for

watched
  watched in silence
  asked too many questions
  made the tea
  swept the floor
  drew {friend.them} on a slate
  fell asleep again

taught:
  had taught, wanted to teach, had promised to teach, never quite taught

lesson
  to count the stars
  to whistle like a bird
  three words of Latin
  the names of the winds
  to tell lies politely
  how to sell {trade.wares}
  to swim
  a very old dance

was_glad
  was glad of it
  forgot it by supper
  practised half the night
  laughed at the thought
  wrote everything down
  soon did it better than {friend.they} could

origin
  {hero.their} grandmother had left {hero.them}
  had come in the post
  nobody else could see
  held {thing.holds}
  {friend.name} had mended twice
  {hero.they} had won at cards

guess
  some said it brought luck
  perhaps {friend.they} had simply forgotten
  {hero.name} had never dared to ask
  people whispered about it
  it was that kind of house

loss
  {Moment}, the {thing.name} was gone. {reaction} {decision}
  {Moment}, {hero.name} heard a {voice} voice: "{rumour}" {reaction} {decision}
  {Moment}, a stranger in a {colour} {garment} came to the door and asked for the \
      {look.plain} {thing.name}. {decision}

moment
  one {weather} morning
  one {weather} evening
  on the first day of {month}
  late one {weekday}
  a week later
  then, at midnight
  at last, after a {weather} night

weather:
  foggy, windy, rainy, bright, frosty, stormy, warm, still

month:
  January, March, April, June, July, September, October, December

weekday:
  Monday, Tuesday, Wednesday, Friday, Saturday, Sunday

garment:
  coat, hat, scarf, uniform, dress, mask

voice:
  strange, hoarse, small, familiar, distant, cold

rumour
  The {thing.name} is {rumoured} {place}!
  Where is {friend.name} tonight?
  Whoever holds the {look.plain} {thing.name} will never {grow}.
  Beware of the {trade.name}, my child.
  There are only {count} days left!

rumoured:
  hidden, buried, waiting, not safe, for sale

grow
  grow old
  be hungry
  sleep again
  lose {hero.their} way
  be alone

reaction
  {hero.name} {felt}, and {hero.their} {body_part} {trembled}.
  {hero.They} {felt}.
  {friend.name} {felt}, but {friend.they} said nothing.
  Even the {trade.name} {felt}.

felt:
  was frightened, turned pale, could hardly breathe, smiled, did not believe it, began to cry,
  jumped up, sat down, shook with laughter

body_part:
  hands, knees, voice, lips, fingers

trembled
  trembled
  went cold
  would not obey
  gave {hero.them} away

decision
  So {hero.they} packed {luggage} and went
  "{We} must go at once," said {friend.name}, and together they went
  Without a word {friend.name} took {hero.them} by the hand and led {hero.them}

we:
  we, you, both of us, someone

luggage
  a loaf of bread
  {count} candles
  {hero.their} best shoes
  a blanket
  a map
  {hero.their} whole courage

# On the way: what is met belongs to the place where they went.
way
  There {hero.they} saw {quest.met}. {second_sight}
  There they met {quest.met} and {quest.met}.
  "Look," cried {hero.name}, "{quest.met}!" {second_sight}

second_sight
  Beyond lay {quest.met}.
  It was {weather} there, and {quest.met} frightened {hero.them}.
  {friend.name} pointed: {quest.met}, and behind it, {quest.met}.
  {hero.name} hardly noticed; {hero.they} thought only of the {thing.name}.

friend_helps
  {friend.name} {helped} with {trade.tool}.\n
  "{advice}" {friend.they} {said} to {hero.them}. {answer}\n
  "{advice}" {friend.they} {said}, and gave {hero.them} {trade.tool}. {answer}\n
  Meanwhile the {trade.name} {helped}; {friend.they} had sold all {friend.their} {trade.wares}.\n

helped
  followed {hero.them}
  broke down the door
  scared off a thief
  dug a hole
  searched {place}
  lit the way
  drove away the dogs

advice
  Never trust {quest.met},
  Take care of yourself, {hero.name},
  Do not be afraid of the dark,
  I was {trait} once, as you are,
  A {trade.name} knows such things,
  What is lost {place} is lost for good,
  The {look.plain} ones are always the worst,

said:
  said, whispered, shouted, replied, murmured, sighed

answer
  {hero.name} nodded.
  {hero.They} only shrugged.
  "Yes," {said} {hero.name}, "I know."
  "Why?" {said} {hero.name}. "{why}"
  It was the best advice {hero.they} ever got.

why
  Because I say so.
  You will see!
  Ask me tomorrow.
  Nobody can tell.
  Is it not enough to look at the {thing.name}?
  Think of {count} {animals}.

talk
  {talk_line}\n{talk_line}\n{finding}
  {talk_line}\n{talk_line}\n{talk_line}\n{finding}

talk_line
  "{question}" asked {hero.name}.
  "{question}" the {trade.name} wanted to know.
  "{Statement}," {said} {friend.name}.
  "{Statement}," {said} {hero.name}, {gesture}.
  For a while nobody {said} a word.

question
  Is it far?
  Do you hear {quest.met}?
  Who made the {thing.name}?
  Have you seen my {look.plain} {thing.name}?
  Shall we turn back?
  What does {look.a} {thing.name} cost?
  Are you asleep, {friend.name}?

statement
  it is {weather} today
  my feet hurt
  I can see {quest.met}
  we are not alone
  the {thing.name} was never {look.plain} at all
  every {trade.name} has a secret
  I would give all my {trade.wares} for some soup

gesture
  holding {friend.their} sleeve
  yawning
  with tears in {hero.their} eyes
  without turning round
  and meant it
  pulling on {hero.their} gloves

finding
  At the end of the {span} {hero.they} found it: {thing.holds}, and the {look.plain} \
      {thing.name} {beside} it.
  Then {hero.name} {tripped} over something. It was the {look.plain} {thing.name}; inside \
      there was {thing.holds}.
  It was {friend.name} who found the {thing.name}, {beside} {quest.met}. {reaction}
  They never found the {thing.name}. But {beside} {quest.met} stood {look.a} {other=thing} \
      and, it is said, {other.holds}.

span:
  day, road, night, week, tunnel, year

tripped:
  tripped, fell, nearly stepped, ran, leaned

beside:
  beside, under, on top of, not far from, right behind

ending
  {Later} {hero.name} {became} a {trade.name}, and {friend.name} {end_friend}.
  {Later} {hero.they} gave the {thing.name} to {friend.name}, who {end_friend}. {moral}
  {Later} {hero.name} and {friend.name} {came_home}, {hero.they} with {luggage}, \
      {friend.they} with {trade.tool}. {moral}

later:
  from that day on, years later, when it was over, the next {season}, in the end

became:
  became, wished to be, married, was known as

end_friend
  bought {count} {animals}
  never sold {trade.wares} again
  laughed until {friend.they} cried
  still tells the tale to {friend.their} {animals}
  moved away; {friend.their} new house stands {place}
  wrote a book about {hero.them}

animals:
  hens, horses, cats, donkeys, parrots, rabbits

came_home:
  came home, danced, fell asleep, sailed away, opened a shop

moral
  Such is the way of every {thing.name}.
  And if {hero.they} has not lost it, {hero.they} has it still.
  The {look.plain} things in life are the dearest.
  No {trade.name} could have done it better.
  {Time} people knew this better than we do.
)GRAMMAR";

}  // namespace

std::string_view stories_description() {
  return kStories;
}

}  // namespace lathe
