// A chat on stdin and stdout: each line is a turn, the reply comes as it is made.
//
//   c++ -std=c++17 chat.cpp $(pkg-config --cflags --libs offramp) -o chat
//   ./chat MODEL [--greedy] [MAX_TOKENS]
#include <offramp.hpp>

#include <iostream>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " MODEL [--greedy] [MAX_TOKENS]\n";
        return 2;
    }
    try {
        auto picking = offramp::sampler_params();
        auto limits = offramp::generate_params();
        for (int i = 2; i < argc; i++) {
            if (argv[i] == std::string("--greedy")) picking.temperature = 0;
            else limits.max_tokens = static_cast<std::uint32_t>(std::stoul(argv[i]));
        }
        const offramp::model model(argv[1], offramp::model_params(), [](float done) {
            std::cerr << "\rloading " << static_cast<int>(done * 100) << " %" << (done < 1 ? "" : "\n");
            return true;
        });
        const offramp::sampler sampler(model, picking);
        offramp::session session(model);
        std::vector<offramp::message> turns;
        for (std::string line; std::getline(std::cin, line);) {
            turns.push_back({"user", line});
            session.set_chat(turns);
            std::string reply;
            session.generate(
                [&](std::string_view text) {
                    reply += text;
                    std::cout << text << std::flush;
                    return true;
                },
                &sampler, limits);
            turns.push_back({"assistant", reply});
            std::cout << '\n';
            const auto found = session.statistics();
            std::cerr << found.n_tokens << " tokens, " << found.tokens_per_second << " a second, " << found.mean_depth
                      << " blocks deep\n";
        }
    } catch (const std::exception & error) {
        std::cerr << "chat: " << error.what() << '\n';
        return 1;
    }
}
