// What the C++ wrapper promises: statuses become exceptions, exceptions of callables come out, handles are freed.
//
//   wrapper MODEL FOLDER
#include <offramp.hpp>

#include <cstdlib>
#include <iostream>

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            std::cerr << __FILE__ << ':' << __LINE__ << ": " << #condition << '\n';         \
            std::exit(1);                                                                   \
        }                                                                                   \
    } while (0)

template <typename Call> std::int32_t status_of(Call call) {
    try {
        call();
        return OFFRAMP_OK;
    } catch (const offramp::error & error) {
        CHECK(std::string(error.what()) != "");
        return error.status();
    }
}

int main(int argc, char ** argv) {
    CHECK(argc == 3);
    CHECK(status_of([] { offramp::model model("/nonexistent"); }) == OFFRAMP_ERROR_IO);
    CHECK(status_of([&] { offramp::model model(argv[1], offramp::model_params(), [](float) { return false; }); }) ==
          OFFRAMP_ERROR_CANCELLED);
    offramp::model model(argv[1]);
    auto small = offramp::session_params();
    small.n_ctx = 256;
    small.n_threads = 1;
    offramp::session session(model, small);
    CHECK(session.n_ctx() == 256);
    CHECK(model.detokenize(model.tokenize("some text")) == "some text");
    session.set_text("some text");
    CHECK(session.tokens() == model.tokenize("some text", true, true));

    auto limits = offramp::generate_params();
    limits.max_tokens = 20;
    limits.ignore_eos = 1;
    struct odd {};
    int pieces = 0;
    try {
        session.generate([&](std::string_view) -> bool { ++pieces; throw odd(); }, nullptr, limits);
        CHECK(!"an exception comes out");
    } catch (const odd &) {
        CHECK(pieces == 1);
    }
    std::string first, second;
    session.set_text("some text");
    session.save(std::string(argv[2]) + "/cpp.session");
    session.generate([&](std::string_view text) { first += text; return true; }, nullptr, limits);
    offramp::session other(model, small);
    other.load(std::string(argv[2]) + "/cpp.session");
    other.generate([&](std::string_view text) { second += text; return true; }, nullptr, limits);
    CHECK(!first.empty() && first == second);
    session.cancel();
    CHECK(status_of([&] { session.set_chat({{"user", "Hi"}}); }) == OFFRAMP_ERROR_CANCELLED);
    session.clear_cancel();
    session.set_chat({{"user", "Hi"}});
    offramp::session moved = std::move(session);
    moved.truncate(3);
    CHECK(moved.tokens().size() == 3);
    moved.clear();
    CHECK(moved.statistics().n_layer > 0);
}
