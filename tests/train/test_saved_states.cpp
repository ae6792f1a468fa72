// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

#include <string>

#include "emprl/io/json.hpp"
#include "emprl/train/align.hpp"
#include "emprl/train/fit.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::io::Json;
using emprl::test::message_of;

namespace {

/// Numbers that stand where a count belongs and are none.
Json const no_counts[] = {Json(1e300), Json(2.5), Json(18446744073709551615U), Json("3"), Json()};

}  // namespace

TEST_CASE("saved states: a count that is no whole number is refused, not converted",
          "[train][checkpoint][bad_input]") {
  namespace detail = emprl::train::detail;
  Json const ppo = detail::to_json(emprl::rl::PpoState{});
  Json const judged = detail::to_json(detail::JudgedSteps{});
  Json const fit = detail::to_json(detail::FitState{});
  CHECK_NOTHROW(detail::ppo_state_from_json(ppo, "state.json"));
  CHECK_NOTHROW(detail::judged_from_json(judged, "state.json"));
  CHECK_NOTHROW(detail::fit_state_from_json(fit, "state.json"));
  auto const with = [](Json json, char const* key, Json const& value) {
    json[key] = value;
    return json;
  };
  for (Json const& value : no_counts) {
    INFO(value.dump());
    CHECK_THAT(message_of<IoError>(
                   [&] { detail::ppo_state_from_json(with(ppo, "step", value), "state.json"); }),
               ContainsSubstring("state.json: "));
    CHECK_THAT(message_of<IoError>(
                   [&] { detail::judged_from_json(with(judged, "steps", value), "state.json"); }),
               ContainsSubstring("state.json: "));
    for (char const* key : {"step", "epoch", "batch", "best_epoch"}) {
      CHECK_THAT(message_of<IoError>(
                     [&] { detail::fit_state_from_json(with(fit, key, value), "state.json"); }),
                 ContainsSubstring("state.json: "));
    }
  }
}
