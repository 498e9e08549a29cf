import re

COUNTRIES = """
capital language continent
france paris french europe; germany berlin german europe; spain madrid spanish europe; italy rome italian europe; portugal lisbon portuguese europe; greece athens greek europe
poland warsaw polish europe; sweden stockholm swedish europe; norway oslo norwegian europe; denmark copenhagen danish europe; finland helsinki finnish europe; iceland reykjavik icelandic europe
hungary budapest hungarian europe; romania bucharest romanian europe; bulgaria sofia bulgarian europe; austria vienna german europe; ireland dublin - europe; england london english europe
netherlands amsterdam dutch europe; belgium brussels - europe; switzerland bern - europe; ukraine kyiv ukrainian europe; croatia zagreb croatian europe; serbia belgrade serbian europe
slovenia ljubljana slovene europe; slovakia bratislava slovak europe; estonia tallinn estonian europe; latvia riga latvian europe; lithuania vilnius lithuanian europe; albania tirana albanian europe
russia moscow russian -; turkey ankara turkish -; japan tokyo japanese asia; china beijing chinese asia; india - hindi asia; thailand bangkok thai asia; vietnam hanoi vietnamese asia
mongolia - mongolian asia; nepal kathmandu nepali asia; iran tehran persian asia; iraq baghdad - asia; syria damascus arabic asia; jordan amman arabic asia; lebanon beirut arabic asia
pakistan islamabad urdu asia; bangladesh dhaka bengali asia; cambodia - khmer asia; laos vientiane lao asia; indonesia - indonesian asia
egypt cairo arabic africa; algeria algiers - africa; tunisia tunis arabic africa; libya tripoli arabic africa; sudan khartoum arabic africa; morocco rabat - africa
kenya nairobi - africa; nigeria abuja english africa; ghana accra english africa; senegal dakar french africa; tanzania dodoma swahili africa; uganda kampala - africa; zambia lusaka english africa
somalia mogadishu somali africa; angola luanda portuguese africa; mozambique maputo portuguese africa; mali bamako - africa; ethiopia - amharic africa; madagascar - malagasy africa
canada ottawa - north_america; mexico mexico_city spanish north_america; cuba havana spanish north_america; jamaica kingston english north_america
brazil brasilia portuguese south_america; argentina buenos_aires spanish south_america; chile santiago spanish south_america; peru lima spanish south_america; colombia bogota spanish south_america
venezuela caracas spanish south_america; ecuador quito spanish south_america; uruguay montevideo spanish south_america; bolivia - - south_america; paraguay - - south_america
australia canberra english oceania; fiji suva - oceania
"""

ANIMALS = """
sound young home class
dog woof puppy kennel mammal; cat meow kitten - mammal; cow moo calf barn mammal; horse neigh foal stable mammal; sheep baa lamb fold mammal; pig oink piglet sty mammal; goat bleat kid - mammal
donkey bray foal stable mammal; mouse squeak - hole mammal; lion roar cub den mammal; tiger - cub - mammal; bear growl cub den mammal; leopard - cub - mammal; panda - cub - mammal; wolf howl pup den mammal
hyena laugh cub den mammal; fox - - den mammal; elephant trumpet calf - mammal; giraffe - calf - mammal; camel - calf - mammal; whale - calf - mammal; dolphin click calf - mammal; deer - fawn forest mammal
kangaroo - joey - mammal; koala - joey tree mammal; zebra - foal - mammal; seal bark pup - mammal; otter - pup holt mammal; bat - pup cave mammal; rabbit - - burrow mammal; hare - leveret - mammal
beaver - - lodge mammal; badger - cub sett mammal; squirrel - - drey mammal; hedgehog - hoglet - mammal; monkey chatter infant tree mammal; gorilla - infant forest mammal; mole - pup burrow mammal
duck quack duckling pond bird; hen cluck chick coop bird; rooster crow - coop bird; goose honk gosling - bird; turkey gobble poult - bird; swan - cygnet lake bird; eagle screech eaglet nest bird
owl hoot owlet tree bird; crow caw chick nest bird; pigeon coo squab loft bird; dove coo squab - bird; parrot squawk chick - bird; sparrow chirp chick nest bird; robin - chick nest bird
penguin - chick - bird; ostrich - chick - bird; hawk - chick nest bird; flamingo - chick - bird; peacock - peachick - bird; canary - chick cage bird
frog croak tadpole pond amphibian; toad croak tadpole - amphibian; newt - - pond amphibian; salamander - - - amphibian
snake hiss - - reptile; lizard - - - reptile; crocodile - hatchling - reptile; tortoise - hatchling - reptile; turtle - hatchling sea reptile; iguana - - - reptile
salmon - - river fish; trout - - river fish; tuna - - sea fish; cod - - sea fish; herring - - sea fish; shark - pup sea fish; carp - - pond fish; eel - elver river fish; goldfish - - bowl fish
bee buzz larva hive insect; wasp buzz larva nest insect; ant - larva anthill insect; fly buzz maggot - insect; butterfly - caterpillar - insect; moth - caterpillar - insect; beetle - grub - insect
cricket chirp nymph - insect; grasshopper chirp nymph - insect; mosquito whine larva - insect; spider - spiderling web arachnid; scorpion - - - arachnid
"""

THINGS = """
colour category material
lemon yellow fruit -; banana yellow fruit -; strawberry red fruit -; cherry red fruit -; raspberry red fruit -; orange orange fruit -; lime green fruit -; blueberry blue fruit -; plum purple fruit -
apricot orange fruit -; kiwi green fruit -; mango - fruit -; pear - fruit -; peach - fruit -; grape - fruit -; pineapple - fruit -
carrot orange vegetable -; spinach green vegetable -; broccoli green vegetable -; pea green vegetable -; lettuce green vegetable -; cauliflower white vegetable -; onion - vegetable -; cabbage - vegetable -
snow white - -; coal black - -; grass green plant -; fern green plant -; moss green plant -; blood red - -; sky blue - -; cloud white - -; chocolate brown - -; flour white - -; sugar white - -; soot black - -
charcoal black - -; ruby red gem -; emerald green gem -; sapphire blue gem -; pearl white gem -; frog green - -; crow black - -; swan white - -; canary yellow - -; flamingo pink - -; pig pink - -; mud brown - -
milk white drink -; coffee - drink -; tea - drink -; water - drink -; juice - drink -; beer - drink -; wine - drink -
hammer - tool -; saw - tool -; drill - tool -; wrench - tool -; screwdriver - tool -; axe - tool -; spade - tool -; rake - tool -
chair - furniture wood; table - furniture wood; desk - furniture wood; shelf - furniture wood; wardrobe - furniture wood; sofa - furniture -; bed - furniture -; stool - furniture wood
shirt - clothing cotton; sweater - clothing wool; jeans blue clothing denim; sock - clothing -; scarf - clothing wool; glove - clothing -; dress - clothing -; skirt - clothing -; coat - clothing -; tie - clothing silk
car - vehicle -; bus - vehicle -; truck - vehicle -; train - vehicle -; bicycle - vehicle -; tram - vehicle -; van - vehicle -; tractor - vehicle -
piano - instrument -; guitar - instrument wood; violin - instrument wood; flute - instrument -; trumpet - instrument brass; harp - instrument -; cello - instrument wood
football - sport -; tennis - sport -; hockey - sport -; golf - sport -; rugby - sport -; basketball - sport -
rose - flower -; tulip - flower -; lily - flower -; daisy - flower -; sunflower yellow flower -; dandelion yellow flower -; poppy red flower -
oak - tree -; pine - tree -; birch - tree -; maple - tree -; willow - tree -; gold yellow metal -; copper - metal -; iron - metal -; tin - metal -; lead - metal -
window - - glass; bottle - - glass; mirror - - glass; lens - - glass; book - - paper; newspaper - - paper; envelope - - paper; map - - paper; box - - cardboard; candle - - wax; tyre black - rubber; balloon - - rubber
eraser - - rubber; brick red - clay; pot - - clay; boot - - leather; belt - - leather; wallet - - leather; saddle - - leather; towel - - cotton; sheet white - cotton; bandage white - cotton; bucket - - plastic
igloo white - ice; statue - - stone; castle - - stone; pyramid - - stone; door - - wood; fence - - wood; pencil - - wood; barrel - - wood; sword - - steel; knife - - steel; wire - - copper; kimono - - silk
"""

WORKERS = """
tool place
painter brush -; writer pen -; baker oven bakery; doctor stethoscope hospital; nurse - hospital; surgeon scalpel hospital; teacher - school; pupil - school; farmer tractor farm; judge gavel court; lawyer - court
photographer camera studio; chef - kitchen; cook pan kitchen; lumberjack axe forest; tailor needle -; barber razor -; hairdresser scissors salon; dentist drill clinic; gardener spade garden; fisherman net sea
astronomer telescope observatory; scientist microscope laboratory; chemist - laboratory; librarian - library; soldier rifle barracks; miner pickaxe mine; blacksmith anvil forge; plumber wrench -; janitor mop -
firefighter hose -; cashier - shop; actor - theatre; waiter tray restaurant; priest - church; monk - monastery; butcher cleaver -; conductor baton -; archer bow -; potter wheel -; sculptor chisel studio
programmer computer office; secretary - office; banker - bank; mechanic - garage; athlete - stadium; clown - circus; acrobat - circus; referee whistle -; lifeguard - beach; cleaner broom -; drummer drum -
pilot - cockpit; prisoner - prison; violinist violin -; guitarist guitar -; carpenter saw workshop; shepherd crook meadow; knight sword castle; king - palace; queen - palace; navigator compass -; sailor - ship
mathematician calculator -; climber rope mountain; skier - mountain; beekeeper - apiary; winemaker - vineyard; surfer board beach; swimmer - pool; hiker - trail; diver - sea; brewer - brewery
"""

NOUNS = """
plural french spanish
house houses maison casa; dog dogs chien perro; cat cats chat gato; child children enfant niño; man men homme hombre; woman women femme mujer; foot feet pied pie; tooth teeth dent diente; mouse mice souris ratón
goose geese oie ganso; ox oxen - buey; person people personne persona; tree trees arbre árbol; book books livre libro; bread - pain pan; water - eau agua; milk - lait leche; sun suns soleil sol; moon moons lune luna
star stars étoile estrella; fire fires feu fuego; hand hands main mano; head heads tête cabeza; eye eyes - ojo; ear ears oreille oreja; nose noses nez nariz; mouth mouths bouche boca; door doors porte puerta
window windows fenêtre ventana; table tables table mesa; chair chairs chaise silla; bed beds lit cama; key keys clé llave; city cities ville ciudad; baby babies bébé bebé; lady ladies dame -; leaf leaves feuille hoja
knife knives couteau cuchillo; wife wives - esposa; life lives vie vida; wolf wolves loup lobo; box boxes boîte caja; fox foxes renard zorro; glass glasses verre -; church churches église iglesia; bus buses - autobús
potato potatoes - -; tomato tomatoes tomate tomate; hero heroes héros héroe; horse horses cheval caballo; cow cows vache vaca; sheep sheep mouton oveja; deer deer cerf ciervo; bird birds oiseau pájaro
apple apples pomme manzana; king kings roi rey; queen queens reine reina; friend friends ami amigo; brother brothers frère hermano; sister sisters - hermana; mother mothers mère madre; father fathers père padre
school schools école escuela; street streets rue calle; car cars voiture coche; ship ships - barco; river rivers - río; sea seas mer mar; island islands île isla; flower flowers fleur flor; garden gardens jardin jardín
country countries pays país; day days jour día; night nights nuit noche; year years - año; shoe shoes chaussure zapato; shirt shirts chemise camisa; hat hats chapeau sombrero; spoon spoons cuillère cuchara
cup cups tasse taza; cheese cheeses fromage queso; egg eggs - huevo; shelf shelves étagère estante; watch watches montre reloj; bridge bridges pont puente; half halves moitié mitad; thief thieves voleur ladrón
"""

VERBS = """
past ing
go went going; see saw seeing; eat ate eating; drink drank drinking; sing sang singing; swim swam swimming; run ran running; write wrote writing; ride rode riding; drive drove driving; fly flew flying; know knew knowing
grow grew growing; throw threw throwing; blow blew blowing; draw drew drawing; take took taking; give gave giving; come came coming; make made making; break broke breaking; speak spoke speaking; steal stole stealing
wake woke waking; choose chose choosing; freeze froze freezing; forget forgot forgetting; get got getting; sit sat sitting; stand stood standing; find found finding; buy bought buying; bring brought bringing
think thought thinking; teach taught teaching; catch caught catching; fight fought fighting; sell sold selling; tell told telling; say said saying; hear heard hearing; keep kept keeping; sleep slept sleeping
feel felt feeling; leave left leaving; lose lost losing; meet met meeting; send sent sending; spend spent spending; build built building; begin began beginning; ring rang ringing; fall fell falling; hold held holding
win won winning; dig dug digging; pay paid paying; walk walked walking; talk talked talking; play played playing; jump jumped jumping; work worked working; look looked looking; help helped helping; open opened opening
close closed closing; cook cooked cooking; wash washed washing; dance danced dancing; love loved loving; stop stopped stopping; plan planned planning; cry cried crying; study studied studying; carry carried carrying
"""

ADJECTIVES = """
opposite comparative
big small bigger; small big smaller; tall short taller; long short longer; short - shorter; hot cold hotter; cold hot colder; warm cool warmer; cool warm cooler; fast slow faster; slow fast slower; young old younger; old - older
new old newer; good bad better; bad good worse; happy sad happier; sad happy sadder; rich poor richer; poor rich poorer; strong weak stronger; weak strong weaker; heavy light heavier; light - lighter; dark light darker
hard soft harder; soft hard softer; high low higher; low high lower; deep shallow deeper; shallow deep shallower; wide narrow wider; narrow wide narrower; thick thin thicker; thin thick thinner; clean dirty cleaner
dirty clean dirtier; dry wet drier; wet dry wetter; full empty fuller; empty full emptier; easy hard easier; early late earlier; late early later; near far nearer; far near farther; loud quiet louder; quiet loud quieter
cheap expensive cheaper; expensive cheap -; safe dangerous safer; dangerous safe -; smooth rough smoother; rough smooth rougher; sharp blunt sharper; blunt sharp blunter; tight loose tighter; loose tight looser
wise foolish wiser; foolish wise -; brave cowardly braver; cowardly brave -; rude polite ruder; polite rude -; open closed -; closed open -; true false -; false true -; alive dead -; dead alive -; same different -
different same -; ancient modern -; modern ancient -; public private -; private public -; guilty innocent -; innocent guilty -; ugly beautiful uglier; beautiful ugly -; awake asleep -; asleep awake -; female male -
male female -; bright dim brighter; dim bright dimmer; tiny huge tinier; huge tiny -; large small larger; proud humble prouder; humble proud humbler; nice - nicer; angry - angrier; funny - funnier; pretty - prettier; lazy - lazier
"""

def parse(table,  # rows separated by `;` or a line break; the first line names the columns
         ):
    "The table as `{column: {subject: value}}`, leaving out the cells that read `-`; a subject named twice raises `ValueError`."
    head, *rows = [r.split() for r in re.split(r'[;\n]', table) if r.strip()]
    subjects = [r[0] for r in rows]
    if len(set(subjects)) < len(rows): raise ValueError(f"a subject stands twice in the table: {sorted({s for s in subjects if subjects.count(s) > 1})}; give each one row")
    if odd := [r[0] for r in rows if len(r) != len(head)+1]: raise ValueError(f"rows with another number of columns than {head}: {odd}; write - for a missing value")
    return {col: {r[0]: r[i+1].replace('_', ' ') for r in rows if r[i+1] != '-'} for i, col in enumerate(head)}

TABLES = dict(country=COUNTRIES, animal=ANIMALS, thing=THINGS, worker=WORKERS, noun=NOUNS, verb=VERBS, adjective=ADJECTIVES)
RELATIONS = {(key, col): rows for key, table in TABLES.items() for col, rows in parse(table).items()}
