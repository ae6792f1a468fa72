// SPDX-License-Identifier: Apache-2.0
#pragma once
/// The grammar of the synthetic corpus. A listener's turn is composed of clauses, each of which
/// stands for one level of one communication mechanism (emotional reaction, interpretation,
/// exploration), so that the three levels of every response are known by construction. The levels
/// are drawn from a distribution that depends on what a reader of the context can see: the kind of
/// emotion, its strength, and what the last speaker's turn does. One triple of levels holds most of
/// the mass in each such case and the triples differ between cases, so a generator trained on
/// samples can be improved by preferring the modes, and no single answer is best everywhere.

#include <array>
#include <cctype>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "words.hpp"

namespace emprl::corpus {

/// Emotional reaction, interpretation, exploration; each 0 (none), 1 (weak) or 2 (strong).
using Levels = std::array<int, 3>;

/// What a speaker's turn does. A listener can read it off the turn's last sentence.
enum class Act { tell, detail, feeling, advice, close };

inline constexpr int acts = 5;

/// One utterance. A listener's turn knows its levels and the most likely ones of its context.
struct Turn {
  std::string text;
  Act act = Act::tell;  ///< of the speaker's turn, or of the one that a listener answers
  std::optional<Levels> levels;
  Levels mode{};
};

/// A conversation; turns alternate and the speaker begins.
struct Dialogue {
  Emotion const* emotion = nullptr;
  std::string prompt;
  std::vector<Turn> turns;
};

/// A response made of clauses; clauses[k] is the text that carries mechanism k, empty at level 0.
struct Response {
  std::string text;
  std::array<std::string, 3> clauses;
};

namespace detail {

inline std::string_view pick(RandomSequence& random, Lines const& lines) {
  return lines[static_cast<std::size_t>(random.below(static_cast<index_t>(lines.size())))];
}

/// An index drawn from weights that need not sum to one.
inline int draw(RandomSequence& random, std::span<double const> weights) {
  double total = 0.0;
  for (double const w : weights) total += w;
  double u = random.uniform() * total;
  for (std::size_t i = 0; i + 1 < weights.size(); ++i) {
    if (u < weights[i]) return static_cast<int>(i);
    u -= weights[i];
  }
  return static_cast<int>(weights.size()) - 1;
}

inline bool chance(RandomSequence& random, double p) {
  return random.uniform() < p;
}

inline Topic const* find_topic(std::string_view name) {
  for (Topic const& topic : topics()) {
    if (topic.name == name) return &topic;
  }
  return nullptr;
}

inline bool is_vowel(char c) {
  return std::string_view("aeioAEIO").find(c) != std::string_view::npos;
}

/// Capitalises sentences and turns "a" before a vowel into "an", which templates cannot know.
inline std::string polish(std::string const& text) {
  std::string out;
  bool start = true;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char const c = text[i];
    bool const letter = std::isalpha(static_cast<unsigned char>(c)) != 0;
    out += start && letter ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c;
    bool const article = (c == 'a' || c == 'A') && (i == 0 || text[i - 1] == ' ') &&
                         i + 2 < text.size() && text[i + 1] == ' ' && is_vowel(text[i + 2]);
    if (article) out += 'n';
    if (letter) start = false;
    if (c == '.' || c == '!' || c == '?') start = true;
  }
  return out;
}

/// The words that slots of one conversation stand for.
struct Scene {
  Emotion const* emotion = nullptr;
  Topic const* topic = nullptr;
  std::string_view noun, person, partner;
};

/// Fills the slots of a template; a topic's slot gives the scene its topic and noun if it has none.
inline std::string fill(RandomSequence& random, Scene& scene, std::string_view pattern) {
  std::string out;
  std::size_t at = 0;
  while (at < pattern.size()) {
    std::size_t const open = pattern.find('{', at);
    if (open == std::string_view::npos) {
      out += pattern.substr(at);
      break;
    }
    out += pattern.substr(at, open - at);
    std::size_t const shut = pattern.find('}', open);
    std::string_view const slot = pattern.substr(open + 1, shut - open - 1);
    at = shut + 1;
    if (slot == "person") {
      out += scene.person;
    } else if (slot == "partner") {
      out += scene.partner;
    } else if (slot == "time") {
      out += pick(random, past_times());
    } else if (slot == "soon") {
      out += pick(random, future_times());
    } else if (slot == "place") {
      out += pick(random, places());
    } else if (slot == "feeling") {
      out += pick(random, scene.emotion->feelings);
    } else if (slot == "x") {
      out += scene.noun;
    } else {
      Topic const* const topic = find_topic(slot);
      expects<ConfigError>(topic != nullptr,
                           "The corpus template '" + std::string(pattern) +
                               "' uses a slot that is neither a word class nor a topic.");
      if (scene.topic == nullptr) {
        scene.topic = topic;
        scene.noun = pick(random, topic->nouns);
      }
      out += scene.noun;
    }
  }
  return polish(out);
}

inline bool is_positive(Group group) {
  return group == Group::joy || group == Group::warm || group == Group::steady;
}

/// Emotional reactions by tone; [0] is weak, [1] is strong.
inline Lines const& reactions(Group group, int level) {
  static std::array<std::array<Lines, 2>, groups> const table{{
      // grief
      {Lines{"That's tough.", "That's too bad.", "How sad.", "That is a pity.", "Poor you."},
       Lines{"I feel so sorry for you, my heart goes out to you.", "My heart breaks for you.",
             "I am deeply sorry and wish I could hug you.", "It makes me so sad for you.",
             "I am so sorry, I really care about you."}},
      // fear
      {Lines{"That's scary.", "That's rough.", "Oh no.", "How awful.", "That is tough."},
       Lines{"I am so worried for you, please stay safe.", "My heart goes out to you, truly.",
             "I am so sorry, I wish I could hold your hand.", "It frightens me for your sake.",
             "I really care and I am right here for you."}},
      // anger
      {Lines{"That's bad.", "How rude.", "That is rough.", "Ugh.", "That is not nice."},
       Lines{"I am so sorry, you did not deserve that at all.", "It makes me so angry for you.",
             "I feel terrible for you, my heart aches.", "It hurts me deeply to hear it.",
             "I am so upset for you, I am on your side."}},
      // shame
      {Lines{"That's rough.", "Oh dear.", "That is too bad.", "Ouch.", "Poor you."},
       Lines{"I am so sorry, I care about you no matter what.", "My heart goes out to you.",
             "I feel for you so much, dear friend.", "I wish I could give you a big hug.",
             "It makes me so sad to see you hurt."}},
      // joy
      {Lines{"That's great.", "Nice.", "Cool.", "Good for you.", "That is fun."},
       Lines{"I am so happy for you, it fills my heart!", "I am thrilled for you, truly!",
             "You made my whole day so bright!", "I could hug you, I am so glad!",
             "It gives me so much joy to hear it!"}},
      // warm
      {Lines{"That's nice.", "That's sweet.", "How lovely.", "That is kind.", "Good to hear."},
       Lines{"It warms my heart so much.", "I am deeply touched, thank you for sharing it.",
             "I am so moved, my eyes are wet.", "I feel so much love for you both.",
             "It makes me so happy for you."}},
      // steady
      {Lines{"That's good.", "Sounds good.", "Nice.", "Good for you.", "That is fine news."},
       Lines{"I am so happy for you, truly.", "I am so glad, I wish you all the best!",
             "It makes me smile for you.", "I am so proud of you, dear friend.",
             "I am with you with all my heart."}},
  }};
  return table[static_cast<std::size_t>(group)][static_cast<std::size_t>(level - 1)];
}

inline Lines const& weak_interpretations() {
  static Lines const lines{"I understand.",     "I know what you mean.", "I get it.",
                           "That makes sense.", "I can see that.",       "I can relate to that."};
  return lines;
}

/// Strong interpretations that name the inferred feeling.
inline Lines const& inferences() {
  static Lines const lines{"You must feel so {feeling}.", "It sounds like you are {feeling}.",
                           "I guess you felt {feeling} right away.",
                           "You seem {feeling} about the {x}.",
                           "No wonder that you are {feeling} now."};
  return lines;
}

inline Lines const& weak_explorations() {
  static Lines const lines{"What happened?", "How come?",         "Can you tell me more?",
                           "Why is that?",   "What do you mean?", "And then what?"};
  return lines;
}

/// Remarks that show none of the mechanisms; some share words with clauses that do, as real ones
/// would.
inline Lines const& remarks() {
  static Lines const lines{"Well, it is what it is.",
                           "People talk about that a lot.",
                           "I read about it in the news.",
                           "It happens every day.",
                           "Okay, noted.",
                           "I have to go to the store.",
                           "It feels like rain here.",
                           "Sorry, I was on the other line."};
  return lines;
}

inline Lines const& suggestions(bool positive) {
  static Lines const up{"You could write it down.", "Maybe take a photo of it.",
                        "You should plan a free day.", "Try to do it in the morning.",
                        "Just keep it simple."};
  static Lines const down{"You could make a list first.", "Maybe wait for a day or two.",
                          "You should call somebody about it.", "Try to take one step at a time.",
                          "Just go and speak with them."};
  return positive ? up : down;
}

inline Lines const& requests(bool positive) {
  static Lines const up{"What should I do next?", "How would you celebrate it?",
                        "Any idea for what comes now?", "Would you do the same?"};
  static Lines const down{"What should I do now?", "Do you have any advice?",
                          "How would you handle it?", "Should I talk to somebody?"};
  return positive ? up : down;
}

inline Lines const& feelings(bool positive) {
  static Lines const up{"I feel so {feeling} about it.", "Inside I am just {feeling}.",
                        "I have not felt this {feeling} in years.",
                        "I woke up {feeling} and it stays with me."};
  static Lines const down{"I feel so {feeling} about it.", "Inside I am just {feeling}.",
                          "I have been {feeling} ever since.",
                          "I lie awake and feel {feeling} all night."};
  return positive ? up : down;
}

inline Lines const& closings() {
  static Lines const lines{"Thank you for listening to me.", "Anyway, it was good to talk.",
                           "Thanks, I should go to bed now.", "Well, that was my story.",
                           "Okay, thanks for your time."};
  return lines;
}

inline std::string_view starter(RandomSequence& random) {
  static Lines const lines{"", "", "", "Well, ", "So, ", "You know, "};
  return pick(random, lines);
}

inline void append(std::string& text, std::string const& sentence) {
  if (!text.empty()) text += ' ';
  text += sentence;
}

}  // namespace detail

/// How a speaker's story sounds: as much of an emotion as the likely levels depend on.
enum class Tone { sad, hurt, glad };

inline Tone tone_of(Group group) {
  if (detail::is_positive(group)) return Tone::glad;
  return group == Group::grief || group == Group::fear ? Tone::sad : Tone::hurt;
}

/// The most likely levels of an answer. They depend on little, so that a small model can learn it:
/// tone, strength, and what the speaker's turn does.
inline Levels likely_levels(Emotion const& emotion, Act act) {
  static std::array<std::array<Levels, acts>, 3> const table{{
      //      tell       detail     feeling    advice     close
      {Levels{2, 0, 1}, Levels{1, 0, 2}, Levels{2, 2, 0}, Levels{0, 2, 1}, Levels{2, 1, 0}},  // sad
      {Levels{0, 2, 0}, Levels{0, 1, 2}, Levels{1, 2, 0}, Levels{0, 1, 0},
       Levels{1, 1, 0}},  // hurt
      {Levels{1, 0, 2}, Levels{1, 0, 1}, Levels{2, 1, 0}, Levels{0, 0, 2},
       Levels{1, 0, 0}},  // glad
  }};
  Levels levels =
      table[static_cast<std::size_t>(tone_of(emotion.group))][static_cast<std::size_t>(act)];
  if (emotion.intense && levels[0] < 2) ++levels[0];
  return levels;
}

/// Levels drawn for an answer: the likely ones with probability 0.55; otherwise each mechanism
/// keeps its likely level with probability 0.5 and takes one of the other two with 0.25 each. The
/// likely triple has 0.55 + 0.45 / 8 = 0.61 in all.
inline Levels draw_levels(RandomSequence& random, Emotion const& emotion, Act act) {
  Levels levels = likely_levels(emotion, act);
  if (detail::chance(random, 0.55)) return levels;
  for (int& level : levels) {
    if (detail::chance(random, 0.5)) level = (level + 1 + static_cast<int>(random.below(2))) % 3;
  }
  return levels;
}

/// A response with exactly these levels.
/// @param remark probability of a remark without empathy where a clause already stands; an answer
/// of levels 0 always has one
inline Response compose(RandomSequence& random, detail::Scene& scene, Levels const& levels, Act act,
                        double remark) {
  using namespace detail;
  bool const positive = is_positive(scene.emotion->group);
  Response out;
  if (levels[0] > 0) {
    out.clauses[0] = fill(random, scene, pick(random, reactions(scene.emotion->group, levels[0])));
  }
  if (levels[1] == 1) out.clauses[1] = fill(random, scene, pick(random, weak_interpretations()));
  if (levels[1] == 2) {
    Lines const& lines = chance(random, 0.6) ? inferences() : scene.topic->shared;
    out.clauses[1] = fill(random, scene, pick(random, lines));
  }
  if (levels[2] == 1) out.clauses[2] = fill(random, scene, pick(random, weak_explorations()));
  if (levels[2] == 2) out.clauses[2] = fill(random, scene, pick(random, scene.topic->questions));
  std::string neutral;
  bool const bare = levels == Levels{0, 0, 0};
  if (act == Act::advice && (bare || chance(random, 0.5))) {
    neutral = fill(random, scene, pick(random, suggestions(positive)));
  } else if (bare || chance(random, remark)) {
    neutral =
        fill(random, scene, pick(random, chance(random, 0.6) ? scene.topic->facts : remarks()));
  }
  bool const swap = chance(random, 0.15);
  for (std::string const& part :
       {out.clauses[swap ? 1 : 0], out.clauses[swap ? 0 : 1], neutral, out.clauses[2]}) {
    if (!part.empty()) append(out.text, part);
  }
  return out;
}

namespace detail {

inline Scene begin_scene(RandomSequence& random, Emotion const& emotion) {
  Scene scene;
  scene.emotion = &emotion;
  scene.person = pick(random, persons());
  scene.partner = pick(random, partners());
  return scene;
}

inline Turn answer(RandomSequence& random, Scene& scene, Act act) {
  Turn turn;
  turn.act = act;
  turn.levels = draw_levels(random, *scene.emotion, act);
  turn.mode = likely_levels(*scene.emotion, act);
  turn.text = compose(random, scene, *turn.levels, act, 0.12).text;
  return turn;
}

inline std::string say(RandomSequence& random, Scene& scene, Act act) {
  bool const positive = is_positive(scene.emotion->group);
  switch (act) {
    case Act::feeling:
      return fill(random, scene, pick(random, feelings(positive)));
    case Act::advice:
      return fill(random, scene, pick(random, requests(positive)));
    case Act::close:
      return fill(random, scene, pick(random, closings()));
    case Act::tell:
    case Act::detail:
      break;
  }
  return fill(random, scene, pick(random, scene.topic->details));
}

}  // namespace detail

/// A conversation of 4 to 6 utterances.
inline Dialogue make_dialogue(RandomSequence& random, Emotion const& emotion) {
  using namespace detail;
  Dialogue dialogue;
  dialogue.emotion = &emotion;
  Scene scene = begin_scene(random, emotion);
  std::string const before(starter(random));
  std::string text = fill(random, scene, pick(random, emotion.situations));
  if (!before.empty() && text.compare(0, 2, "I ") != 0) {
    text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  }
  text = before + text;
  if (chance(random, 0.3)) append(text, say(random, scene, Act::detail));
  dialogue.prompt = text;
  Act act = Act::tell;
  if (chance(random, 0.2)) {
    append(text, say(random, scene, Act::advice));
    act = Act::advice;
  }
  std::array<double, 3> const lengths{0.5, 0.2, 0.3};
  int const utterances = 4 + draw(random, lengths);
  for (int i = 0; i < utterances; i += 2) {
    if (i > 0) {
      bool const asked = dialogue.turns.back().levels->at(2) > 0;
      bool const last = i + 2 >= utterances;
      // detail, feeling, advice, close: a question is mostly answered, and conversations end by
      // ending
      std::array<double, 4> const weights{asked ? 0.6 : 0.15, asked ? 0.2 : 0.5,
                                          asked ? 0.15 : 0.25, last ? 0.3 : 0.0};
      act = static_cast<Act>(1 + draw(random, weights));
      text = say(random, scene, act == Act::advice && chance(random, 0.5) ? Act::detail : act);
      if (act == Act::advice && text.back() != '?') append(text, say(random, scene, Act::advice));
    }
    dialogue.turns.push_back({text, act, std::nullopt, {}});
    if (i + 1 < utterances) dialogue.turns.push_back(answer(random, scene, act));
  }
  return dialogue;
}

/// A seeker's post: an opening, what else there is to say and sometimes a second paragraph or a
/// quotation.
inline std::pair<std::string, detail::Scene> make_seeker(RandomSequence& random,
                                                         Emotion const& emotion) {
  using namespace detail;
  Scene scene = begin_scene(random, emotion);
  std::string text = fill(random, scene, pick(random, emotion.situations));
  append(text, say(random, scene, Act::detail));
  if (!is_positive(emotion.group) && chance(random, 0.4)) {
    append(text, "They only said \"get over it\", nothing else.");
  }
  text += chance(random, 0.3) ? "\n\n" : " ";
  text += say(random, scene, chance(random, 0.6) ? Act::feeling : Act::advice);
  return {text, scene};
}

/// A response to a seeker's post. Unlike a dialogue's, its levels do not depend on the post:
/// identifiers should read responses.
inline std::pair<Response, Levels> make_reply(RandomSequence& random, detail::Scene scene) {
  std::array<std::array<double, 3>, 3> const weights{
      {{0.42, 0.31, 0.27}, {0.44, 0.26, 0.30}, {0.44, 0.25, 0.31}}};
  Levels levels{};
  for (std::size_t k = 0; k < 3; ++k) levels[k] = detail::draw(random, weights[k]);
  Response response = compose(random, scene, levels, Act::tell, 0.4);
  return {std::move(response), levels};
}

}  // namespace emprl::corpus
