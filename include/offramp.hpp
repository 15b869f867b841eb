/*
 * Offramp for C++17: owners for the handles of offramp.h, exceptions for its statuses, callables for its callbacks.
 *
 * Header only. What each call does and which may run at the same time is said in offramp.h; an object here is one
 * handle there. An exception that leaves a callable stops the call and comes out of it on the caller's side.
 */
#ifndef OFFRAMP_HPP
#define OFFRAMP_HPP

#include "offramp.h"

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace offramp {

/// A status that was not OFFRAMP_OK, with its reason.
class error : public std::runtime_error {
public:
    explicit error(std::int32_t status) : std::runtime_error(offramp_last_error()), status_(status) {}
    std::int32_t status() const noexcept { return status_; }

private:
    std::int32_t status_;
};

namespace detail {

inline void check(std::int32_t status) {
    if (status != OFFRAMP_OK) throw error(status);
}

/// Parameters with the defaults of the library.
template <typename Params, std::int32_t (*defaults)(Params *, size_t)> Params params() {
    Params params;
    check(defaults(&params, sizeof params));
    return params;
}

/// A callable behind a C callback. What it throws is kept, since it must not pass through C.
template <typename Callable> struct guarded {
    Callable callable;
    std::exception_ptr thrown;

    template <typename... Arguments> std::int32_t operator()(Arguments... arguments) noexcept {
        try {
            return callable(arguments...) ? 1 : 0;
        } catch (...) {
            thrown = std::current_exception();
            return 0;
        }
    }

    /// Throws what was kept, or the status.
    void finish(std::int32_t status) {
        if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
        check(status);
    }
};

/// Copies out of a function that fills a buffer and tells its length.
template <typename Container, typename Fill> Container filled(Fill fill) {
    size_t n = 0;
    check(fill(nullptr, 0, &n));
    Container values(n, {});
    check(fill(values.data(), values.size(), &n));
    values.resize(n);
    return values;
}

template <auto free_handle> struct deleter {
    template <typename Handle> void operator()(Handle * handle) const noexcept { free_handle(handle); }
};

} // namespace detail

using progress_function = std::function<bool(float done)>;
/// Gets pieces of whole code points; false ends the reply.
using token_function = std::function<bool(std::string_view text)>;

inline auto model_params() { return detail::params<offramp_model_params, offramp_model_default_params>(); }
inline auto session_params() { return detail::params<offramp_session_params, offramp_session_default_params>(); }
inline auto sampler_params() { return detail::params<offramp_sampler_params, offramp_sampler_default_params>(); }
inline auto generate_params() { return detail::params<offramp_generate_params, offramp_generate_default_params>(); }

/// One turn of a conversation.
struct message {
    std::string role;
    std::string content;
};

/// A loaded model.
class model {
public:
    explicit model(const std::string & path, offramp_model_params params = model_params(),
                   progress_function progress = nullptr) {
        detail::guarded<progress_function> guarded{std::move(progress), nullptr};
        if (guarded.callable) {
            params.progress = [](float done, void * data) -> std::int32_t {
                return (*static_cast<decltype(guarded) *>(data))(done);
            };
            params.progress_user_data = &guarded;
        }
        offramp_model * raw = nullptr;
        guarded.finish(offramp_model_load(path.c_str(), &params, &raw));
        handle_.reset(raw);
    }

    offramp_model_info info() const {
        offramp_model_info info;
        detail::check(offramp_model_get_info(get(), &info, sizeof info));
        return info;
    }

    std::vector<std::int32_t> tokenize(std::string_view text, bool add_special = true, bool parse_special = false) const {
        return detail::filled<std::vector<std::int32_t>>([&](std::int32_t * tokens, size_t capacity, size_t * n) {
            return offramp_tokenize(get(), text.data(), text.size(), add_special, parse_special, tokens, capacity, n);
        });
    }

    std::string detokenize(const std::vector<std::int32_t> & tokens, bool special = false) const {
        return detail::filled<std::string>([&](char * text, size_t capacity, size_t * n) {
            return offramp_detokenize(get(), tokens.data(), tokens.size(), special, text, capacity, n);
        });
    }

    offramp_model * get() const noexcept { return handle_.get(); }

private:
    std::unique_ptr<offramp_model, detail::deleter<offramp_model_free>> handle_;
};

/// How tokens are picked.
class sampler {
public:
    explicit sampler(const model & model, const offramp_sampler_params & params = sampler_params()) {
        offramp_sampler * raw = nullptr;
        detail::check(offramp_sampler_new(model.get(), &params, &raw));
        handle_.reset(raw);
    }

    offramp_sampler * get() const noexcept { return handle_.get(); }

private:
    std::unique_ptr<offramp_sampler, detail::deleter<offramp_sampler_free>> handle_;
};

/// A conversation on a model.
class session {
public:
    explicit session(const model & model, const offramp_session_params & params = session_params()) {
        offramp_session * raw = nullptr;
        detail::check(offramp_session_new(model.get(), &params, &raw));
        handle_.reset(raw);
    }

    void set_chat(const std::vector<message> & messages, progress_function progress = nullptr) {
        std::vector<offramp_message> raw;
        for (const auto & message : messages) raw.push_back({message.role.c_str(), message.content.c_str()});
        prompted(std::move(progress), [&](offramp_progress_callback callback, void * data) {
            return offramp_session_set_chat(get(), raw.data(), raw.size(), callback, data);
        });
    }

    void set_text(std::string_view text, progress_function progress = nullptr) {
        prompted(std::move(progress), [&](offramp_progress_callback callback, void * data) {
            return offramp_session_set_text(get(), text.data(), text.size(), callback, data);
        });
    }

    void set_prompt(const std::vector<std::int32_t> & tokens, progress_function progress = nullptr) {
        prompted(std::move(progress), [&](offramp_progress_callback callback, void * data) {
            return offramp_session_set_prompt(get(), tokens.data(), tokens.size(), callback, data);
        });
    }

    /// Greedy without a sampler.
    void generate(const token_function & on_token, const sampler * sampler = nullptr,
                  const offramp_generate_params & params = generate_params()) {
        detail::guarded<const token_function &> guarded{on_token, nullptr};
        auto callback = [](const char * text, size_t length, void * data) -> std::int32_t {
            return (*static_cast<decltype(guarded) *>(data))(std::string_view(text, length));
        };
        guarded.finish(offramp_session_generate(get(), sampler ? sampler->get() : nullptr, &params,
                                                on_token ? +callback : nullptr, &guarded));
    }

    /// From any thread; see offramp_session_cancel.
    void cancel() const { detail::check(offramp_session_cancel(get())); }
    void clear_cancel() const { detail::check(offramp_session_clear_cancel(get())); }

    offramp_statistics statistics() const {
        offramp_statistics statistics;
        detail::check(offramp_session_statistics(get(), &statistics, sizeof statistics));
        return statistics;
    }

    std::vector<std::int32_t> tokens() const {
        return detail::filled<std::vector<std::int32_t>>([&](std::int32_t * tokens, size_t capacity, size_t * n) {
            return offramp_session_tokens(get(), tokens, capacity, n);
        });
    }

    size_t n_ctx() const {
        size_t n = 0;
        detail::check(offramp_session_n_ctx(get(), &n));
        return n;
    }

    void truncate(size_t n_tokens) { detail::check(offramp_session_truncate(get(), n_tokens)); }
    void clear() { detail::check(offramp_session_clear(get())); }
    void save(const std::string & path) { detail::check(offramp_session_save(get(), path.c_str())); }
    void load(const std::string & path) { detail::check(offramp_session_load(get(), path.c_str())); }

    offramp_session * get() const noexcept { return handle_.get(); }

private:
    template <typename Call> void prompted(progress_function progress, Call call) {
        detail::guarded<progress_function> guarded{std::move(progress), nullptr};
        auto callback = [](float done, void * data) -> std::int32_t {
            return (*static_cast<decltype(guarded) *>(data))(done);
        };
        guarded.finish(call(guarded.callable ? +callback : nullptr, &guarded));
    }

    std::unique_ptr<offramp_session, detail::deleter<offramp_session_free>> handle_;
};

} // namespace offramp

#endif /* OFFRAMP_HPP */
