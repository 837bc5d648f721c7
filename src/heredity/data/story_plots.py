"""The plots of the generated stories: beats told one after the other, each in one of several ways.

A line that starts with `-` is one way to tell a beat, a blank line ends the beat. `[a|b]` is a choice, `{slot}` a value
from the cast (`story_cast.py`) and stays the same through the story; `{Slot}` starts a sentence.
"""

from __future__ import annotations

OPENING = """
- Once upon a time, there was a [little|young|small] {kind} named {hero}. {He} [was {trait}|lived near {the_place}].
- One {day} morning, a {trait} {kind} [named|called] {hero} [woke up early|looked out of the window|jumped out of bed].
- {hero} was a {trait} {kind}. {He} [lived in a small house near {the_place}|loved to play {at_place}].
- In a [quiet town|green valley|small village], there lived a {kind} named {hero}. Everyone said that {he} was {trait}.
- It was a {day} [day|morning|afternoon]. A [little|young] {kind} named {hero} was playing {at_place}.
"""

ASIDE = """
- For breakfast, {he} had [eaten|shared] {food} with {helper}. "Do not forget your {color} hat," {hhe} said.
- {He} wore {his} {color} [boots|coat|hat|scarf], [as always|because {helper} liked it so much].
- The sun was [shining|up], and a {animal} was [sitting|resting] {spot}. "{Cry}," it said.
- There was a smell of {food} in the air, and [somewhere|far away] a bell was ringing.
- {His} best friend was {friend}, who had a {color} {thing} and always [told funny jokes|knew a new game].
- {He} liked {food}, {color} flowers, and long walks with {helper}.
- {Helper} called, "Be home before dinner!" "I will," said {hero}, and {he} [hopped|skipped|ran] out of the door.
- The {day} air smelled of [grass|flowers|rain|the sea], and {hero} [sang a little song|was in a good mood].
- When {he} was not busy with {his} {thing}, {he} liked to count the [clouds|stones|birds|snails].
- [On the way|That morning], {he} had met {friend}. "See you later!" {fhe} had said [happily|and waved].
- {He} knew every [tree|path|stone|bird] {at_place}. {Helper} had shown {him} all of them.
- {He} had a [loose tooth|new haircut|secret pocket|lucky button], and {he} was very proud of it.
"""

MIDDLE = """
- A {color} butterfly flew by.
- The wind [blew softly|whispered] in the trees.
- Far away, a [clock struck|dog barked|train whistled] [two|three|four|five] times.
- For a moment, [nobody said a word|everything was still|all was quiet].
- [High above|Somewhere], a bird [sang its song|called to its mate|flapped its wings].
- A [small|white|gray] cloud [moved over the sky|floated by].
- {hero} could feel {his} heart beat [fast|faster and faster].
- A leaf [fell|came] down and landed on {his} [nose|head|hand].
"""

ENDING = """
- The end.
- From then on, [everyone {at_place} was a little kinder|{hero} smiled every time {he} thought of that day].
- That night, {hero} told {helper} [all about it|the whole story] and fell asleep with a smile.
- [It was the best day ever.|What a {day} day it had been!|And they all lived happily.]
- {Helper} gave {hero} a big hug. "I am so proud of you," {hhe} said.
- Then they all [ate|shared] {food}, and [it tasted wonderful|there was enough for everyone].
"""

LOST_TOY = """
- {He} had a {color} {thing}. It was {his} favorite toy, and {he} took it everywhere.
- {His} best toy was a {color} {thing}. {Helper} had given it to {him} for {his} birthday.

- One day, {hero} took the {thing} to {the_place}. {He} liked to {play}. But when it was time to go home,
  the {thing} was gone!
- {He} went to {the_place} to {play}. Then {he} stopped to [watch a butterfly|look at the clouds], and when {he}
  turned around, the {thing} was not there.

- "Oh no! Where is my {thing}?" {hero} cried. {He} looked [left and right|up and down|everywhere], but {he} could not
  find it. {He} felt very [sad|upset|worried].
- {hero} began to cry. "I lost my {thing}," {he} said. "I will never see it again!"

- A [kind|small|friendly] {animal} heard {him}. "Do not [cry|worry]," said the {animal}. "I will help you look."
  They searched together, step by step.
- Then {friend} came by. "What is wrong?" asked {friend}. "I lost my {thing}," said {hero}. "Let us look for it
  together," {friend} said.

- At last, they saw something {color} {spot}. It was the {thing}! {hero} [jumped for joy|clapped {his} hands].
  "Thank you! I could not have found it alone," {he} said.
- They looked {spot}. And there it was, the {color} {thing}! "Hooray!" shouted {hero}. "Thank you for your help!"

- {hero} hugged the {thing} and took it home. After that day, {he} always [put it back in its box|took good care of it].
- {hero} learned that it is [good|fine] to ask for help, and that two pairs of eyes are better than one.
"""

SHARING = """
- One day, {hero} and {friend} found a {color} {thing} {spot}. They both wanted it [at once|very much].
- {hero} and {friend} were good friends. One day {helper} gave them a {color} {thing}, but there was only one.

- "It is mine!" said {hero}. "No, I saw it first!" said {friend}. They pulled and pulled.
- {hero} held the {thing} tight. "I want to {play}," {he} said. "But it is my turn!" cried {friend}.

- {friend} [sat down|walked away] and began to cry. Now {hero} had the {thing}, but playing alone was no fun at all.
- The two friends were so [angry|cross] that they did not talk. {hero} looked at the {thing}. It did not make {him} happy.

- {Helper} saw them. "[A toy is more fun|Things are nicer] when you share," {hhe} said [softly|with a smile].
- {hero} remembered what {helper} always said: "A friend is worth more than a toy."

- So {hero} went to {friend}. "I am sorry," {he} said. "Do you want to {play} with me? You can go first."
- "Sorry, {friend}," said {hero}. "Let us take turns." {friend} dried {fhis} tears and smiled. "I am sorry too," {fhe} said.

- They played together [all afternoon|until dinner], and it was [twice|much] more fun than before.
- First {friend} had a turn, then {hero}, then {friend} again. They laughed and laughed.

- {hero} learned that sharing [makes friends happy|is a kind thing to do].
- After that, they shared everything, even {food}.
"""

AFRAID = """
- But there was one thing that {hero} did not like. {He} was afraid of {fear}.
- {hero} was brave about most things, but {fear} made {him} [shake|hide|feel very small].

- That day, {fear_event}. {hero} [hid behind {helper}|shut {his} eyes|ran to {helper}]. "I am scared!" {he} said.
- Then {fear_event}. "Help!" cried {hero}. {His} heart went boom, boom, boom.

- {Helper} took {his} hand. "It is okay to be scared," {hhe} said. "{Fear_comfort}"
- "I was scared of that too when I was little," said {helper}. "{Fear_comfort}"

- {hero} took a deep breath. "I will try," {he} [whispered|said in a small voice].
- {hero} thought about it for a while. "Will you stay with me?" {he} asked. "Of course," said {helper}.

- Slowly, {hero} {fear_deed}. It was not so bad! {He} began to [smile|laugh].
- {hero} counted to three. One, two, three! Then {he} {fear_deed}. "Look at me!" {he} shouted.

- "You did it!" said {helper}. "Being brave means that you are scared and try anyway."
- From that day on, {hero} was not so afraid of {fear} anymore.
"""

LOST_ANIMAL = """
- {He} was walking {at_place} when {he} heard a [soft|tiny|sad] sound. "{Cry}, {cry}!"
- While {he} was playing {at_place}, something moved {spot}. "{Cry}!" it went.

- It was a baby {animal}, all alone. "Are you lost?" asked {hero}. The little {animal} [nodded|looked at {him} with big eyes].
- {hero} looked closer and saw a tiny {animal}. It was [cold|shaking] and [hungry|sad]. "Where is your mother?" {he} asked.

- {hero} gave it {meal}. The {animal} ate it all up and felt [better|much stronger].
- First, {he} put {his} {color} scarf around it. Then {he} gave it {meal}. "{Cry}," said the {animal} softly.

- "I will take you home," said {hero}. They [walked and walked|went over the hill], and {he} asked everyone they met.
- {hero} called {friend}, and the two of them looked for the baby's family [all day long|until it was almost dark].

- At last, they came to {home}. Out came a big {animal}. "My baby!" she cried.
- Then {hero} saw {home}. The mother {animal} was there! She ran to her baby and [hugged|kissed] it.

- "Thank you for bringing my little one home," the mother said. {hero} waved goodbye and felt warm inside.
- The little {animal} was so happy that it danced around. Every day after that, it came to play with {hero}.
"""

HONESTY = """
- One day, {hero} was playing with {his} {color} {thing} inside the house. {Helper} had told {him} not to.
- {Helper} had a pretty {breakable} on the table. "Please be careful with it," {hhe} always said.

- {hero} ran too fast and bumped into the table. Crash! The {breakable} fell on the floor and broke.
- {hero} wanted to look at the {breakable}. But it slipped out of {his} hands. Crash! It broke into many pieces.

- {hero} was [scared|worried]. {He} hid the pieces under {his} bed and did not say a word.
- "Oh no," {he} thought. "{Helper} will be angry." So {he} hid behind the [curtain|sofa] and kept very quiet.

- At dinner there was {food}, but {hero} could not eat. {His} tummy felt [bad|funny]. "What is wrong?" asked {helper}.
- {Helper} came into the room. "Where is my {breakable}?" {hhe} asked. {hero} looked at {his} feet.

- Then {hero} told the truth. "I broke it," {he} said. "I am very sorry." A big tear ran down {his} cheek.
- {hero} took a deep breath. "It was me," {he} said. "I broke the {breakable} and I hid it. I am sorry."

- {Helper} was quiet for a moment. Then {hhe} [smiled|hugged {him}]. "Thank you for telling me the truth," {hhe} said.
- "I am sad about the {breakable}," said {helper}, "but I am happy that you told me. That was brave."

- Together they glued the pieces back together. {hero} learned that [telling the truth feels good|it is best to be honest].
- {hero} helped {helper} clean up. {He} felt [light|happy] again, and {he} never hid the truth after that.
"""

NEW_FRIEND = """
- One day, a new {friend_kind} came to {the_place}. {Fhis} name was {friend}, and {fhe} did not know anyone.
- {At_place}, {hero} saw a {friend_kind} who sat all alone {spot}. {Fhis} name was {friend}.

- The others were busy, and no one [talked|spoke] to {friend}. {Fhe} looked down at the ground.
- {friend} watched the others play. {Fhe} was too shy to ask if {fhe} could join.

- {hero} remembered how it felt to be alone. So {he} walked over. "Hi, I am {hero}," {he} said. "Do you want to play?"
- "Why are you sad?" asked {hero}. "I have no one to play with," said {friend}. "Then play with me!" said {hero}.

- {friend} [looked up|smiled a little]. "I have a {color} {thing}," {fhe} said. "We can {play}." "I love that!" said {hero}.
- {hero} showed {friend} how to {play}. Soon they were both laughing.

- Then {hero} shared {his} {food} with {friend}. "This is yummy," said {friend}. "Thank you!"
- They played {spot} and [made up a silly song|told each other jokes]. A {animal} came to watch them. "{Cry}!" it said.

- When it was time to go, {friend} said, "Will you play with me tomorrow?" "Yes, every day," said {hero}.
- "You are my first friend here," said {friend}. {hero} was [glad|happy] that {he} had said hello.
"""

STUCK = """
- {hero} was on {his} way to {the_place} when {he} heard a cry. "Help! Help! I am stuck!"
- {At_place}, {he} saw that a {animal} was caught in [a net|a thorny bush|an old fence]. "{Cry}!" it cried.

- It was a {animal}. One of its feet was caught [between two stones|under a branch]. It pulled and pulled, but it could not move.
- The poor {animal} was very scared. It had been there [all morning|since the night before].

- "Do not be afraid," said {hero}. {He} [pushed|pulled] as hard as {he} could, but {he} was not strong enough.
- {hero} wanted to help. {He} tried once, {he} tried twice, but it was too hard to do alone.

- So {he} called {friend}. "Please help me!" Together they counted, "One, two, three!" And the {animal} was free!
- Then {he} had an idea. {He} found a long stick and used it to lift. Pop! The {animal} was free!

- "Thank you," said the {animal}. "One day, I will help you too." Then it ran back to {home}.
- The {animal} was hungry, so {hero} gave it {meal}. "You are a good friend," it said.

- The next day, {hero} got lost in the woods. The {animal} saw {him} and showed {him} the way home.
- Some days later, {hero} lost {his} {color} {thing}. The {animal} found it {spot} and brought it back.

- {hero} learned that when you are kind to others, [they will be kind to you|kindness comes back to you].
- "You helped me, and I helped you," said the {animal}. And they were friends forever.
"""

PRACTICE = """
- More than anything, {hero} wanted to {skill}. {friend} could already do it.
- All of {his} friends could {skill}. Only {hero} could not.

- {He} tried, but {he} {skill_fail}. "Ouch!" {he} said. "This is too hard."
- The first time, {he} {skill_fail}. The second time, {he} {skill_fail} again. {He} wanted to give up.

- "I will never learn it," {hero} said [sadly|with tears in {his} eyes].
- {hero} sat down {spot} and made a grumpy face. "I am no good at this," {he} said.

- {Helper} sat down next to {him}. "[Nobody|No one] can do it the first time," {hhe} said. "You need to practice a little every day."
- A [wise|friendly] old {animal} had watched {him}. "I fell many times before I learned to walk," it said. "Keep trying!"

- So {hero} practiced every day. On Monday it was hard. On Tuesday it was a bit better. On Friday it was almost easy.
- {hero} tried again the next day, and the next, and the day after that. Each time, {he} got a little better.

- Then one {day} day, it worked! {hero} could {skill}! "I did it! I did it!" {he} shouted.
- One morning, {he} tried again, and this time nothing went wrong. {hero} could {skill} at last!

- {friend} clapped {fhis} hands. "Now we can do it together," {fhe} said.
- {hero} learned that [hard things get easy when you practice|you should not give up too soon].
"""

GARDEN = """
- One day, {helper} gave {hero} a small brown seed. "What is it?" asked {hero}. "Plant it, and you will see," {hhe} said.
- {hero} found a tiny seed {spot}. "I will plant it in the garden," {he} said.

- {hero} made a hole in the ground, put the seed in, and gave it some water. Then {he} sat down and waited.
- {Helper} showed {him} how to dig a hole. They put the seed in and covered it with soft, warm earth.

- But nothing happened. {hero} waited one day, and two days, and three days. "Why does it not grow?" {he} asked.
- The next morning, {hero} ran to the garden. There was nothing to see. "Maybe it is asleep," {he} said.

- "Plants need time," said {helper}. "Give it water and sun, and be patient." So {hero} watered it every day.
- A {animal} wanted to dig up the seed. "{Cry}!" it said. "Please do not," said {hero}. "Here, have {meal} instead."

- Then, one {day} morning, there was a small green leaf! It grew and grew until it was [as tall as {hero}|taller than {helper}].
- After a week of rain and sun, something green came out of the ground. Each day it grew a little more.

- It was a {plant}! {hero} was so [proud|happy]. {He} called {friend} to come and see it.
- Soon there was a big, beautiful {plant} in the garden. "I grew that!" said {hero}.

- {hero} learned that good things take time.
- {hero} shared it with {friend} and {helper}, and kept one seed for the next spring.
"""

RAINY_DAY = """
- {hero} and {friend} wanted to go to {the_place}. They had packed {food} and a {color} {thing}.
- {hero} had waited all week to {play} {at_place}. {friend} was coming too.

- But then dark clouds came, and it began to rain. Drip, drop, drip, drop! "Oh no," said {hero}.
- But when they opened the door, rain was pouring down. The whole street was wet.

- {hero} was [sad|cross]. "Now our day is spoiled," {he} said, and {he} pressed {his} nose against the window.
- "This is the worst day ever," said {friend}. They sat on the floor and did not know what to do.

- {Helper} had an idea. "You can have an adventure inside," {hhe} said, and {hhe} brought blankets and pillows.
- Then {hero} saw a big box in the corner. "Look!" {he} said. "This box can be [a ship|a rocket|a castle]!"

- They built a tent out of a {color} blanket and ate {food} inside. It was warm and cozy.
- They sailed over the sea and met a {animal} who was a pirate. "{Cry}, {cry}!" said {friend}, and they laughed and laughed.

- When the rain stopped, there was a rainbow over {the_place}. They ran outside and jumped in all the puddles. Splash!
- They had so much fun that they did not even see the sun come out. "Can we stay inside a little longer?" asked {hero}.

- {hero} learned that [any day can be a good day|you can have fun in any weather].
- "I like rainy days now," said {hero}. "Me too," said {friend}.
"""

GREEDY = """
- {At_place} there lived a [big|greedy|hungry] {animal}. It had [a lot of|more than enough] {food}, but it never shared.
- {hero} knew a {animal} who lived in {home}. It kept all the {food} for itself.

- One day, {hero} and {friend} were hungry. "May we have a little?" asked {hero}. "No! It is all mine!" said the {animal}.
- "Please, can I have some?" asked {friend}. "No," said the {animal}, and it ate faster and faster.

- The {animal} ate and ate until its tummy hurt. "Ow, ow, ow," it cried. "{Cry}!"
- That night, the {animal} ate everything up. Then it felt sick and could not sleep, and nobody was there to help.

- {hero} heard it and came to see. {He} was not angry. {He} brought [warm tea|some water] and sat with the {animal}.
- "We should help," said {hero}. So {he} and {friend} put a blanket around the {animal} and told it a story.

- "Why are you so nice to me?" asked the {animal}. "I was not nice to you." "Because we want to be your friends," said {hero}.
- The {animal} felt ashamed. "I am sorry," it said. "I should have shared with you."

- The next day, the {animal} invited everyone {at_place}. They all ate together, and there was enough for each of them.
- When it was well again, the {animal} gave the biggest piece to {hero} and {friend}. It tasted much better that way.

- The {animal} learned that food tastes best when you share it.
- From then on, the {animal} was never greedy and never lonely again.
"""

SURPRISE = """
- It was {hero}'s birthday. {He} ran to the kitchen, but nobody said anything about it.
- {hero} was very excited, because today was {his} birthday. "Good morning!" {he} called.

- "I am busy," said {helper}. {friend} could not play either. "Did they forget?" {hero} wondered.
- {Helper} only said, "Please go and play {at_place}." {friend} ran away when {he} came near.

- {hero} sat down {spot}, all alone. A {animal} came and sat next to {him}. "{Cry}," it said, as if it knew.
- {He} walked slowly to {the_place} with {his} head down. {He} felt [very sad|lonely] and a little angry.

- When the sun went down, {he} went home. The house was dark and quiet. {He} opened the door.
- Then {he} heard {helper} call, "{hero}, come home!" {He} went inside, but all the lights were off.

- "Surprise!" everyone shouted. There were {color} balloons, a cake, and all of {his} friends!
- Suddenly the lights came on. "Happy birthday!" they all sang. {friend} was there too, with a big smile.

- "We wanted to surprise you," said {friend}, and {fhe} gave {him} a {color} {thing}. {hero} laughed. "You did!"
- On the table there was {food}, and next to it a {color} {thing} with a bow. "It is for you," said {helper}.

- "I thought that you forgot me," said {hero}. "We could never forget you," said {helper}.
- {hero} made a wish and blew out the candles. It was the best birthday {he} ever had.
"""

RACE = """
- There was a big race {at_place} that day. {friend} said, "I am the fastest of all. I will win!"
- {hero} and {friend} wanted to see who could run faster. "I am sure that I will win," said {friend}.

- A slow little {animal} wanted to run too. Everyone laughed, but {hero} said, "You can run next to me."
- "Can I race with you?" asked a small {animal}. "You are too slow," said {friend}. The {animal} looked sad.

- Ready, set, go! {friend} ran so fast that dust flew up. {hero} and the {animal} were far behind.
- They all started to run. {friend} was first, and {fhe} looked back and laughed at the others.

- But {friend} did not look where {fhe} was going. {Fhe} tripped over a stone and hurt {fhis} knee.
- Then {friend} ran too fast around the corner and fell into the mud. {Fhe} began to cry.

- The others ran past. But {hero} stopped, and the {animal} stopped too. "Are you okay?" asked {hero}.
- {hero} could win now. But {he} did not want to win while {his} friend was crying, so {he} went back to help.

- They helped {friend} up, and all three walked over the line together. Everyone clapped and cheered.
- "Take my hand," said {hero}. "{Cry}!" said the {animal}. And so they came in last, but they came in together.

- "I am sorry that I laughed at you," said {friend}. {Fhe} learned that being kind is better than being first.
- {Helper} gave them {food}. "You did not win the race," {hhe} said, "but you are the best of friends."
"""

COOKING = """
- One day, {hero} wanted to make {food} all by {himself}. "I can do it," {he} said.
- {Helper} was going to make {food}. "Can I help?" asked {hero}. "Yes, please," {hhe} said.

- First {he} put flour into a big {color} bowl. Poof! A white cloud went up, and there was flour everywhere.
- {hero} stirred very fast. Splash! It went on the floor, on the wall, and on {helper}.

- {hero} looked at the mess. "Oops," {he} said. {He} thought that {helper} would be angry.
- A {animal} looked in at the window. "{Cry}!" it said. {hero} had to laugh, but then {he} saw the mess.

- But {helper} only laughed. "You look like a snowman!" {hhe} said. "Let us clean up first, and then we try again."
- "Everyone makes a mess at first," said {helper}. {Hhe} gave {him} a cloth, and they wiped the floor together.

- The second time, {hero} was careful. {He} stirred slowly, and {helper} lit the oven. Soon it smelled very good.
- They started again. {hero} counted each spoon out loud. "One, two, three, four." This time, nothing fell down.

- When it was done, they called {friend}. "This is the best I have ever had," {fhe} said with {fhis} mouth full.
- They sat down {spot} and ate it all up. {hero} kept a small piece for the {animal}.

- {hero} learned that [a mess can be cleaned up|it helps to go slowly], and that cooking together is fun.
- "Next time I will do it all alone," said {hero}. "And next time I will wear a raincoat," said {helper}.
"""

NOISE = """
- One night, {hero} could not sleep. There was a strange noise outside. [Scratch, scratch!|Bump, bump!|Tap, tap, tap!]
- When it was dark, {hero} heard a sound near the window. [Scratch, scratch!|Bump, bump!|Tap, tap, tap!] {He} sat up in bed.

- "Is it a monster?" {he} thought, and {he} pulled the {color} blanket over {his} head.
- {hero} was scared. {He} held {his} {thing} very tight. "Who is there?" {he} asked, but nobody answered.

- {He} called {helper}. "There is something out there," {he} said. "Then let us look together," said {helper}.
- {hero} ran to {helper}'s room. {Helper} took a lamp. "We will see what it is," {hhe} said.

- They opened the door very slowly. The light fell on two shiny eyes. "{Cry}!"
- Step by step they went outside. Something small moved in the grass. It had ears, and it had a tail.

- It was only a {animal}! It was looking for something to eat. "You are not a monster at all," laughed {hero}.
- A little {animal} sat there and looked just as scared as {hero}. "Oh, you poor thing," {he} said.

- {hero} gave it {meal}. The {animal} ate it and ran home to {home}.
- "Are you hungry?" {he} asked. {He} put {meal} on the step, and the {animal} ate every bit of it.

- After that, {hero} was not afraid of noises anymore. When {he} heard one, {he} said, "Good night, little {animal}!"
- {hero} learned that things are less scary when you look at them with [a light|a friend].
"""

PROMISE = """
- {hero} had a pet {animal}. "I promise to feed you every day," {he} said, and the {animal} said, "{Cry}!"
- {Helper} had to go away for a day. "Please feed the {animal}," {hhe} said. "I promise," said {hero}.

- In the morning, {hero} gave it {meal}. But then {friend} came with a {color} {thing}, and they went out to {play}.
- But that day, {friend} asked {him} to come to {the_place}. They had so much fun that {hero} forgot all about it.

- When {he} came home, the {animal} was gone. Its bowl was empty, and the door was open.
- In the evening, the {animal} did not come to {him}. It lay in the corner with its back to {hero}, hungry and sad.

- "I forgot my promise!" {he} said. {His} face went red. {He} ran outside and called and called.
- "Oh no," said {hero}. "This is my fault." {He} felt so bad that {he} wanted to cry.

- {He} looked {spot}, and there it was. "I am so sorry," said {hero}, and {he} held out {meal}.
- Quickly, {he} brought {meal} and some fresh water. "Please forgive me," {he} said.

- The {animal} looked at {him} for a while. Then it ate, and put its head on {his} knee.
- "{Cry}," said the {animal}, and it licked {his} hand. It was not angry anymore.

- {hero} made a sign and hung it on the wall. It said: feed the {animal} first, then play.
- {hero} learned that a promise is [something you must keep|important, even when you are having fun].
"""

PLOTS = (
    LOST_TOY, SHARING, AFRAID, LOST_ANIMAL, HONESTY, NEW_FRIEND, STUCK, PRACTICE, GARDEN, RAINY_DAY, GREEDY, SURPRISE,
    RACE, COOKING, NOISE, PROMISE,
)  # fmt: skip
