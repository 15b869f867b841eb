/*
 * What the C ABI promises, from C: statuses for every mistake, whole code points, cancelling from another thread,
 * sessions beside each other, flat memory over many lives.
 *
 *   suite MODEL FOLDER [TEST [COUNT]]      without TEST all of them; `suite --list` names them
 *
 * MODEL is a tiny model of random weights with a chat template. Prints one line a test, stops at the first failure.
 */
#define _POSIX_C_SOURCE 200809L
#include "offramp.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char * model_path;
static const char * folder;
static unsigned count; /* 0: the test's own */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition,       \
                    offramp_last_error());                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call) CHECK((call) == OFFRAMP_OK)
#define FAILS(status, call) CHECK((call) == (status) && offramp_last_error()[0] != '\0')

static offramp_model * load(void) {
    offramp_model * model = NULL;
    OK(offramp_model_load(model_path, NULL, &model));
    return model;
}

static offramp_session * start(const offramp_model * model) {
    offramp_session_params params;
    OK(offramp_session_default_params(&params, sizeof params));
    params.n_ctx = 256;
    params.n_threads = 1;
    offramp_session * session = NULL;
    OK(offramp_session_new(model, &params, &session));
    return session;
}

static offramp_generate_params limit(unsigned max_tokens) {
    offramp_generate_params params;
    OK(offramp_generate_default_params(&params, sizeof params));
    params.max_tokens = max_tokens;
    params.ignore_eos = 1;
    return params;
}

static void set_text(offramp_session * session, const char * text) {
    OK(offramp_session_set_text(session, text, strlen(text), NULL, NULL));
}

static offramp_statistics statistics(const offramp_session * session) {
    offramp_statistics found;
    OK(offramp_session_statistics(session, &found, sizeof found));
    return found;
}

static char * file_in_folder(char * buffer, size_t size, const char * name) {
    snprintf(buffer, size, "%s/%s", folder, name);
    return buffer;
}

/* Collects pieces; stops after `stop_after` of them, if that is not 0. */
struct reply {
    char text[1 << 16];
    size_t length;
    unsigned pieces, stop_after;
    int broken;
};

static int is_whole_utf8(const char * text, size_t length) {
    for (size_t i = 0; i < length;) {
        unsigned char lead = (unsigned char) text[i];
        size_t n = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
        if (n == 0 || i + n > length) return 0;
        for (size_t k = 1; k < n; k++)
            if (((unsigned char) text[i + k] & 0xC0) != 0x80) return 0;
        i += n;
    }
    return 1;
}

static int collect(const char * text, size_t length, void * user_data) {
    struct reply * reply = user_data;
    reply->broken |= length == 0 || !is_whole_utf8(text, length);
    if (reply->length + length <= sizeof reply->text) memcpy(reply->text + reply->length, text, length);
    reply->length += length;
    reply->pieces++;
    return reply->stop_after == 0 || reply->pieces < reply->stop_after;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void versions(void) {
    CHECK(strchr(offramp_version(), '.') != NULL);
    CHECK(offramp_abi_version() == OFFRAMP_ABI_VERSION);
    CHECK(strstr(offramp_engine(), "llama-cpp-sys-2") != NULL);
}

/* Every pointer of every function that must not be NULL. */
static void nulls(void) {
    offramp_model * model = load();
    offramp_session * session = start(model);
    offramp_sampler * sampler = NULL;
    offramp_model_info info;
    offramp_memory memory;
    size_t n = 77;
    int32_t ids[4];
    char text[4];
    offramp_message no_role = { NULL, "x" }, no_content = { "user", NULL };
    const char * no_stop[1] = { NULL };
    offramp_generate_params generate = limit(1);
    generate.stop = no_stop;
    generate.n_stop = 1;
    set_text(session, "text");
#define NULLED(call) FAILS(OFFRAMP_ERROR_NULL, call)
    NULLED(offramp_model_default_params(NULL, sizeof(offramp_model_params)));
    NULLED(offramp_session_default_params(NULL, sizeof(offramp_session_params)));
    NULLED(offramp_sampler_default_params(NULL, sizeof(offramp_sampler_params)));
    NULLED(offramp_generate_default_params(NULL, sizeof(offramp_generate_params)));
    NULLED(offramp_model_load(NULL, NULL, &model));
    NULLED(offramp_model_load(model_path, NULL, NULL));
    NULLED(offramp_model_get_info(NULL, &info, sizeof info));
    NULLED(offramp_model_get_info(model, NULL, sizeof info));
    NULLED(offramp_memory_estimate(NULL, NULL, &memory, sizeof memory));
    NULLED(offramp_memory_estimate(model_path, NULL, NULL, sizeof memory));
    NULLED(offramp_chat_render(NULL, NULL, 0, text, 4, &n));
    NULLED(offramp_chat_render(model, NULL, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, &no_role, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, &no_content, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, NULL, 0, NULL, 4, &n));
    NULLED(offramp_chat_render(model, NULL, 0, text, 4, NULL));
    NULLED(offramp_tokenize(NULL, "a", 1, 0, 0, ids, 4, &n));
    NULLED(offramp_tokenize(model, NULL, 1, 0, 0, ids, 4, &n));
    NULLED(offramp_tokenize(model, "a", 1, 0, 0, NULL, 4, &n));
    NULLED(offramp_tokenize(model, "a", 1, 0, 0, ids, 4, NULL));
    NULLED(offramp_detokenize(NULL, ids, 0, 0, text, 4, &n));
    NULLED(offramp_detokenize(model, NULL, 1, 0, text, 4, &n));
    NULLED(offramp_detokenize(model, ids, 0, 0, NULL, 4, &n));
    NULLED(offramp_detokenize(model, ids, 0, 0, text, 4, NULL));
    NULLED(offramp_sampler_new(NULL, NULL, &sampler));
    NULLED(offramp_sampler_new(model, NULL, NULL));
    NULLED(offramp_session_new(NULL, NULL, &session));
    NULLED(offramp_session_new(model, NULL, NULL));
    NULLED(offramp_session_cancel(NULL));
    NULLED(offramp_session_clear_cancel(NULL));
    NULLED(offramp_session_set_prompt(NULL, ids, 0, NULL, NULL));
    NULLED(offramp_session_set_prompt(session, NULL, 1, NULL, NULL));
    NULLED(offramp_session_set_text(NULL, "a", 1, NULL, NULL));
    NULLED(offramp_session_set_text(session, NULL, 1, NULL, NULL));
    NULLED(offramp_session_set_chat(NULL, NULL, 0, NULL, NULL));
    NULLED(offramp_session_set_chat(session, NULL, 1, NULL, NULL));
    NULLED(offramp_session_set_chat(session, &no_role, 1, NULL, NULL));
    NULLED(offramp_session_tokens(NULL, ids, 4, &n));
    NULLED(offramp_session_tokens(session, NULL, 4, &n));
    NULLED(offramp_session_tokens(session, ids, 4, NULL));
    NULLED(offramp_session_n_ctx(NULL, &n));
    NULLED(offramp_session_n_ctx(session, NULL));
    NULLED(offramp_session_truncate(NULL, 0));
    NULLED(offramp_session_clear(NULL));
    NULLED(offramp_session_save(NULL, "x"));
    NULLED(offramp_session_save(session, NULL));
    NULLED(offramp_session_load(NULL, "x"));
    NULLED(offramp_session_load(session, NULL));
    NULLED(offramp_session_generate(NULL, NULL, NULL, NULL, NULL));
    NULLED(offramp_session_generate(session, NULL, &generate, NULL, NULL));
    NULLED(offramp_session_statistics(NULL, NULL, sizeof(offramp_statistics)));
    NULLED(offramp_session_statistics(session, NULL, sizeof(offramp_statistics)));
#undef NULLED
    CHECK(n == 77 && sampler == NULL);
    offramp_model_free(NULL);
    offramp_sampler_free(NULL);
    offramp_session_free(NULL);
    offramp_session_free(session);
    offramp_model_free(model);
}

static void struct_sizes(void) {
    offramp_model * model = load(), * other = NULL;
    offramp_session * session = NULL;
    offramp_sampler * sampler = NULL;
    offramp_model_params model_params;
    offramp_session_params session_params;
    offramp_sampler_params sampler_params;
    offramp_generate_params generate_params;
    offramp_model_info info;
    offramp_memory memory;
    offramp_statistics found;
    const size_t wrong[] = { 0, 1, 8, 31, 1000, 1 << 30, (size_t) -1 };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        FAILS(OFFRAMP_ERROR_ABI, offramp_model_default_params(&model_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_default_params(&session_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_generate_default_params(&generate_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_model_get_info(model, &info, wrong[i]));
    }
    FAILS(OFFRAMP_ERROR_ABI, offramp_sampler_default_params(&sampler_params, sizeof sampler_params - 8));
    FAILS(OFFRAMP_ERROR_ABI, offramp_memory_estimate(model_path, NULL, &memory, sizeof memory + 1));
    OK(offramp_model_default_params(&model_params, sizeof model_params));
    OK(offramp_session_default_params(&session_params, sizeof session_params));
    OK(offramp_sampler_default_params(&sampler_params, sizeof sampler_params));
    generate_params = limit(1);
    /* A zeroed struct, one of another size, one of another version. */
    for (int i = 0; i < 3; i++) {
        uint32_t sizes[] = { 0, 12, 0 }, versions_[] = { 0, OFFRAMP_ABI_VERSION, OFFRAMP_ABI_VERSION + 1 };
        model_params.struct_size = i == 2 ? sizeof model_params : sizes[i];
        session_params.struct_size = i == 2 ? sizeof session_params : sizes[i];
        sampler_params.struct_size = i == 2 ? sizeof sampler_params : sizes[i];
        generate_params.struct_size = i == 2 ? sizeof generate_params : sizes[i];
        model_params.abi_version = session_params.abi_version = versions_[i];
        sampler_params.abi_version = generate_params.abi_version = versions_[i];
        FAILS(OFFRAMP_ERROR_ABI, offramp_model_load(model_path, &model_params, &other));
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_new(model, &session_params, &session));
        FAILS(OFFRAMP_ERROR_ABI, offramp_memory_estimate(model_path, &session_params, &memory, sizeof memory));
        FAILS(OFFRAMP_ERROR_ABI, offramp_sampler_new(model, &sampler_params, &sampler));
        session = start(model);
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_generate(session, NULL, &generate_params, NULL, NULL));
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_statistics(session, &found, sizeof found - 8));
        offramp_session_free(session);
        session = NULL;
    }
    CHECK(other == NULL && sampler == NULL);
    offramp_model_free(model);
}

static void values(void) {
    offramp_model * model = load(), * other = NULL;
    offramp_session * session = NULL;
    offramp_sampler * sampler = NULL;
    size_t n;
    offramp_session_params params, good;
    OK(offramp_session_default_params(&good, sizeof good));
#define WRONG(field, value)                                                                                   \
    params = good;                                                                                            \
    params.field = value;                                                                                     \
    FAILS(OFFRAMP_ERROR_VALUE, offramp_session_new(model, &params, &session))
    WRONG(flash_attn, 3);
    WRONG(type_k, 9);
    WRONG(type_v, -1);
    WRONG(exits, 3);
    WRONG(kv, 4);
    WRONG(agreement, 0.0f);
    WRONG(agreement, 1.5f);
    WRONG(n_batch, 0);
    WRONG(n_ubatch, 0);
#undef WRONG
    offramp_model_params model_params;
    OK(offramp_model_default_params(&model_params, sizeof model_params));
    model_params.gpu_layers = -3;
    FAILS(OFFRAMP_ERROR_VALUE, offramp_model_load(model_path, &model_params, &other));
    offramp_sampler_params sampler_params;
    OK(offramp_sampler_default_params(&sampler_params, sizeof sampler_params));
    sampler_params.temperature = -1;
    FAILS(OFFRAMP_ERROR_VALUE, offramp_sampler_new(model, &sampler_params, &sampler));
    sampler_params.temperature = 0;
    sampler_params.grammar = "root ::= (";
    FAILS(OFFRAMP_ERROR_GRAMMAR, offramp_sampler_new(model, &sampler_params, &sampler));
    FAILS(OFFRAMP_ERROR_VALUE, offramp_log_set((offramp_log_callback) abort, NULL, 9));
    FAILS(OFFRAMP_ERROR_UTF8, offramp_tokenize(model, "\xff", 1, 0, 0, NULL, 0, &n));
    FAILS(OFFRAMP_ERROR_UTF8, offramp_tokenize(model, "\xf0\x9f\x99\x82", 3, 0, 0, NULL, 0, &n));
    session = start(model);
    FAILS(OFFRAMP_ERROR_VALUE, offramp_session_generate(session, NULL, NULL, NULL, NULL));
    FAILS(OFFRAMP_ERROR_VALUE, offramp_session_set_prompt(session, NULL, 0, NULL, NULL));
    int32_t outside[] = { 1, 1 << 30 };
    FAILS(OFFRAMP_ERROR_VALUE, offramp_session_set_prompt(session, outside, 2, NULL, NULL));
    int32_t many[300];
    for (int i = 0; i < 300; i++) many[i] = i % 200 + 5;
    FAILS(OFFRAMP_ERROR_CONTEXT_LENGTH, offramp_session_set_prompt(session, many, 300, NULL, NULL));
    CHECK(strncmp(offramp_last_error(), "context_length_exceeded", 23) == 0);
    FAILS(OFFRAMP_ERROR_IO, offramp_model_load("/nonexistent/model.gguf", NULL, &other));
    FAILS(OFFRAMP_ERROR_IO, offramp_model_load(folder, NULL, &other));
    char garbage[512];
    FILE * file = fopen(file_in_folder(garbage, sizeof garbage, "garbage.gguf"), "wb");
    CHECK(file != NULL && fputs("GGUF and nothing that follows from it", file) >= 0 && fclose(file) == 0);
    FAILS(OFFRAMP_ERROR_GGUF, offramp_model_load(garbage, NULL, &other));
    CHECK(other == NULL && sampler == NULL);
    offramp_session_free(session);
    offramp_model_free(model);
}

static void buffers(void) {
    offramp_model * model = load();
    size_t n = 0, needed = 0;
    int32_t ids[64] = { 0 };
    char text[256];
    OK(offramp_tokenize(model, "some text", 9, 1, 0, NULL, 0, &needed));
    CHECK(needed > 1 && needed < 64);
    FAILS(OFFRAMP_ERROR_BUFFER, offramp_tokenize(model, "some text", 9, 1, 0, ids, needed - 1, &n));
    CHECK(n == needed && ids[0] == 0);
    OK(offramp_tokenize(model, "some text", 9, 1, 0, ids, needed, &n));
    OK(offramp_detokenize(model, ids, n, 0, text, sizeof text, &n));
    CHECK(n == 9 && memcmp(text, "some text", 9) == 0);
    offramp_message turns[] = { { "system", "Be brief." }, { "user", "Hi \xf0\x9f\x99\x82" } };
    OK(offramp_chat_render(model, turns, 2, NULL, 0, &needed));
    FAILS(OFFRAMP_ERROR_BUFFER, offramp_chat_render(model, turns, 2, text, needed - 1, &n));
    OK(offramp_chat_render(model, turns, 2, text, sizeof text, &n));
    CHECK(n == needed && is_whole_utf8(text, n));
    offramp_memory memory;
    OK(offramp_memory_estimate(model_path, NULL, &memory, sizeof memory));
    CHECK(memory.weights > 0 && memory.kv_cache > 0);
    offramp_model_info info;
    OK(offramp_model_get_info(model, &info, sizeof info));
    CHECK(strcmp(info.architecture, "llama") == 0 && info.n_layer == 6 && info.has_chat_template && !info.has_heads);
    offramp_model_free(model);
}

static void replies(void) {
    offramp_model * model = load();
    offramp_session * session = start(model);
    offramp_model_free(model); /* the session keeps what it needs */
    static struct reply reply, again;
    memset(&reply, 0, sizeof reply);
    memset(&again, 0, sizeof again);
    offramp_generate_params params = limit(100);
    offramp_message turns[] = { { "user", "Tell me something." } };
    OK(offramp_session_set_chat(session, turns, 1, NULL, NULL));
    OK(offramp_session_generate(session, NULL, &params, collect, &reply));
    CHECK(reply.length > 0 && !reply.broken);
    offramp_statistics found = statistics(session);
    CHECK(found.stop_reason == OFFRAMP_STOP_LENGTH && found.n_tokens == 100 && found.n_full == 100);
    CHECK(found.n_layer == 6 && found.mean_depth == 6.0 && found.layer_exits[0] == 0 && found.tokens_per_second > 0);
    CHECK(found.n_prompt == found.n_prompt_decoded && found.n_prompt_reused == 0);
    size_t n_tokens, n_ctx;
    OK(offramp_session_tokens(session, NULL, 0, &n_tokens));
    CHECK(n_tokens == found.n_prompt + 100);
    OK(offramp_session_n_ctx(session, &n_ctx));
    CHECK(n_ctx == 256);
    /* The same again, and stopped after its third piece. */
    again.stop_after = 3;
    OK(offramp_session_set_chat(session, turns, 1, NULL, NULL));
    CHECK(statistics(session).n_prompt_reused == found.n_prompt - 1);
    OK(offramp_session_generate(session, NULL, &params, collect, &again));
    CHECK(again.pieces == 3 && statistics(session).stop_reason == OFFRAMP_STOP_STOP);
    CHECK(memcmp(reply.text, again.text, again.length) == 0);
    /* A stop text that is in the middle of the reply ends it there. */
    char stop[3] = { 0 };
    size_t at = reply.length / 2;
    while (at + 2 < reply.length && !is_whole_utf8(reply.text + at, 2)) at++;
    memcpy(stop, reply.text + at, 2);
    const char * stops[] = { stop };
    params.stop = stops;
    params.n_stop = 1;
    memset(&again, 0, sizeof again);
    OK(offramp_session_set_chat(session, turns, 1, NULL, NULL));
    OK(offramp_session_generate(session, NULL, &params, collect, &again));
    CHECK(statistics(session).stop_reason == OFFRAMP_STOP_STOP && !again.broken && again.length <= at);
    CHECK(memcmp(reply.text, again.text, again.length) == 0);
    /* The context is full in the end. */
    params = limit(0);
    OK(offramp_session_generate(session, NULL, &params, NULL, NULL));
    CHECK(statistics(session).context_full && statistics(session).stop_reason == OFFRAMP_STOP_LENGTH);
    OK(offramp_session_truncate(session, 10));
    OK(offramp_session_tokens(session, NULL, 0, &n_tokens));
    CHECK(n_tokens == 10);
    OK(offramp_session_clear(session));
    OK(offramp_session_tokens(session, NULL, 0, &n_tokens));
    CHECK(n_tokens == 0);
    offramp_session_free(session);
}

static void samplers(void) {
    offramp_model * model = load();
    offramp_session * session = start(model);
    offramp_sampler_params params;
    OK(offramp_sampler_default_params(&params, sizeof params));
    params.use_seed = 1;
    params.seed = 7;
    offramp_sampler * sampler = NULL;
    OK(offramp_sampler_new(model, &params, &sampler));
    offramp_generate_params limits = limit(40);
    static struct reply replies_[2];
    memset(replies_, 0, sizeof replies_);
    for (int i = 0; i < 2; i++) {
        set_text(session, "Once");
        OK(offramp_session_generate(session, sampler, &limits, collect, &replies_[i]));
    }
    CHECK(replies_[0].length == replies_[1].length);
    CHECK(memcmp(replies_[0].text, replies_[1].text, replies_[0].length) == 0);
    offramp_sampler_free(sampler);
    params.grammar = "root ::= [ab]+";
    OK(offramp_sampler_new(model, &params, &sampler));
    memset(replies_, 0, sizeof replies_);
    set_text(session, "Once");
    OK(offramp_session_generate(session, sampler, &limits, collect, &replies_[0]));
    CHECK(strspn(replies_[0].text, "ab") == replies_[0].length && replies_[0].length > 0);
    offramp_sampler_free(sampler);
    offramp_session_free(session);
    offramp_model_free(model);
}

static void saved_sessions(void) {
    char path[512], garbage[512];
    file_in_folder(path, sizeof path, "saved.session");
    file_in_folder(garbage, sizeof garbage, "garbage.session");
    offramp_model * model = load();
    offramp_session * session = start(model), * other = start(model);
    offramp_generate_params limits = limit(30);
    static struct reply replies_[2];
    memset(replies_, 0, sizeof replies_);
    set_text(session, "A conversation that goes on later");
    OK(offramp_session_save(session, path));
    OK(offramp_session_load(other, path));
    OK(offramp_session_generate(session, NULL, &limits, collect, &replies_[0]));
    OK(offramp_session_generate(other, NULL, &limits, collect, &replies_[1]));
    CHECK(replies_[0].length == replies_[1].length);
    CHECK(memcmp(replies_[0].text, replies_[1].text, replies_[0].length) == 0);
    FILE * file = fopen(garbage, "wb");
    CHECK(file != NULL);
    for (int i = 0; i < 4000; i++) fputc(i * 7 & 255, file);
    fclose(file);
    FAILS(OFFRAMP_ERROR_STATE, offramp_session_load(other, garbage));
    FAILS(OFFRAMP_ERROR_IO, offramp_session_load(other, "/nonexistent/saved"));
    FAILS(OFFRAMP_ERROR_IO, offramp_session_save(other, "/nonexistent/saved"));
    offramp_session_free(session);
    offramp_session_free(other);
    offramp_model_free(model);
}

/* Callbacks that call back, and one that frees the session under its own reply. */
static offramp_session * current;

static int busy_callback(const char * text, size_t length, void * user_data) {
    (void) text, (void) length;
    size_t n;
    CHECK(offramp_session_tokens(current, NULL, 0, &n) == OFFRAMP_ERROR_BUSY);
    CHECK(offramp_session_clear(current) == OFFRAMP_ERROR_BUSY);
    CHECK(offramp_session_generate(current, NULL, NULL, NULL, NULL) == OFFRAMP_ERROR_BUSY);
    ++*(int *) user_data;
    return *(int *) user_data < 3;
}

static int freeing_callback(const char * text, size_t length, void * user_data) {
    (void) text, (void) length;
    if (current != NULL) offramp_session_free(current);
    current = NULL;
    ++*(int *) user_data;
    return *(int *) user_data < 3;
}

static int cancelling_callback(const char * text, size_t length, void * user_data) {
    (void) text, (void) length;
    ++*(int *) user_data;
    OK(offramp_session_cancel(current));
    return 1;
}

static int stopping_progress(float done, void * user_data) {
    *(float *) user_data = done;
    return 0;
}

static void callbacks(void) {
    offramp_model * model = load();
    offramp_generate_params limits = limit(50);
    int calls = 0;
    current = start(model);
    set_text(current, "text");
    OK(offramp_session_generate(current, NULL, &limits, busy_callback, &calls));
    CHECK(calls == 3);
    calls = 0;
    OK(offramp_session_generate(current, NULL, &limits, cancelling_callback, &calls));
    CHECK(calls == 1 && statistics(current).stop_reason == OFFRAMP_STOP_CANCELLED);
    FAILS(OFFRAMP_ERROR_CANCELLED, offramp_session_set_text(current, "another text", 12, NULL, NULL));
    OK(offramp_session_clear_cancel(current));
    set_text(current, "another text");
    calls = 0;
    OK(offramp_session_generate(current, NULL, &limits, freeing_callback, &calls));
    CHECK(calls == 3 && current == NULL);
    /* Progress that stops: of a load, and of a prompt of several graphs, which then goes on where it was. */
    float done = -1;
    offramp_model_params params;
    offramp_model * stopped = NULL;
    OK(offramp_model_default_params(&params, sizeof params));
    params.progress = stopping_progress;
    params.progress_user_data = &done;
    FAILS(OFFRAMP_ERROR_CANCELLED, offramp_model_load(model_path, &params, &stopped));
    CHECK(stopped == NULL && done >= 0);
    offramp_session_params small;
    OK(offramp_session_default_params(&small, sizeof small));
    small.n_ctx = 256;
    small.n_ubatch = 32;
    small.n_threads = 1;
    offramp_session * session = NULL;
    OK(offramp_session_new(model, &small, &session));
    int32_t tokens[200];
    for (int i = 0; i < 200; i++) tokens[i] = i + 5;
    FAILS(OFFRAMP_ERROR_CANCELLED, offramp_session_set_prompt(session, tokens, 200, stopping_progress, &done));
    CHECK(done > 0 && done < 1);
    OK(offramp_session_set_prompt(session, tokens, 200, NULL, NULL));
    CHECK(statistics(session).n_prompt_reused >= 32);
    offramp_session_free(session);
    offramp_model_free(model);
}

static void count_lines(int32_t level, const char * text, size_t length, void * user_data) {
    CHECK(level >= OFFRAMP_LOG_ERROR && level <= OFFRAMP_LOG_DEBUG && is_whole_utf8(text, length));
    CHECK(offramp_log_set(NULL, NULL, 0) == OFFRAMP_ERROR_BUSY);
    atomic_fetch_add((atomic_int *) user_data, 1);
}

static void logs(void) {
    atomic_int lines = 0;
    OK(offramp_log_set(count_lines, &lines, OFFRAMP_LOG_DEBUG));
    offramp_model_free(load());
    CHECK(atomic_load(&lines) > 0);
    OK(offramp_log_set(NULL, NULL, 0));
    int before = atomic_load(&lines);
    offramp_model_free(load());
    CHECK(atomic_load(&lines) == before);
}

/* ------------------------------------------------------------------------------------------------------------------ */

struct canceller {
    offramp_session * session;
    long nanoseconds;
    atomic_int go;
};

static void * cancel_later(void * data) {
    struct canceller * canceller = data;
    while (!atomic_load(&canceller->go)) {}
    struct timespec wait = { 0, canceller->nanoseconds };
    nanosleep(&wait, NULL);
    OK(offramp_session_cancel(canceller->session));
    return NULL;
}

/*
 * Cancels at a random moment of a prompt or a reply. Whatever had been emitted is the beginning of the whole reply, and
 * going on emits the rest: no token is lost, none comes twice.
 */
static void cancels(void) {
    const unsigned runs = count ? count : 1000;
    offramp_model * model = load();
    offramp_session * session = start(model);
    static struct reply whole, part;
    memset(&whole, 0, sizeof whole);
    offramp_generate_params limits = limit(60);
    const char * text = "Something to go on from";
    set_text(session, text);
    OK(offramp_session_generate(session, NULL, &limits, collect, &whole));
    size_t n_whole, n;
    OK(offramp_session_tokens(session, NULL, 0, &n_whole));
    int32_t expected[256], found[256];
    OK(offramp_session_tokens(session, expected, 256, &n_whole));
    unsigned in_prompt = 0, in_reply = 0, seed = 1;
    for (unsigned run = 0; run < runs; run++) {
        seed = seed * 1103515245u + 12345u;
        struct canceller canceller = { session, (long) (seed >> 8) % 12000000, 0 };
        pthread_t thread;
        OK(offramp_session_clear(session));
        CHECK(pthread_create(&thread, NULL, cancel_later, &canceller) == 0);
        atomic_store(&canceller.go, 1);
        int32_t status = offramp_session_set_text(session, text, strlen(text), NULL, NULL);
        memset(&part, 0, sizeof part);
        if (status == OFFRAMP_OK) {
            OK(offramp_session_generate(session, NULL, &limits, collect, &part));
            in_reply += statistics(session).stop_reason == OFFRAMP_STOP_CANCELLED;
        } else {
            CHECK(status == OFFRAMP_ERROR_CANCELLED);
            in_prompt++;
        }
        CHECK(pthread_join(thread, NULL) == 0);
        OK(offramp_session_clear_cancel(session));
        CHECK(!part.broken);
        if (status != OFFRAMP_OK) set_text(session, text);
        OK(offramp_session_tokens(session, found, 256, &n));
        offramp_generate_params rest = limit((unsigned) (n_whole - n));
        if (n < n_whole) OK(offramp_session_generate(session, NULL, &rest, NULL, NULL));
        OK(offramp_session_tokens(session, found, 256, &n));
        CHECK(n == n_whole && memcmp(found, expected, n * sizeof *found) == 0);
    }
    printf("  %u runs: %u cancelled in the prompt, %u in the reply\n", runs, in_prompt, in_reply);
    offramp_session_free(session);
    offramp_model_free(model);
}

struct worker {
    const offramp_model * model;
    const offramp_sampler * sampler;
    const char * text;
    unsigned rounds;
    int32_t first[256];
    size_t n_first;
    int failed;
};

static void * work(void * data) {
    struct worker * worker = data;
    for (unsigned round = 0; round < worker->rounds; round++) {
        offramp_session * session = start(worker->model);
        offramp_generate_params limits = limit(30);
        int32_t found[256];
        size_t n;
        set_text(session, worker->text);
        OK(offramp_session_generate(session, worker->sampler, &limits, NULL, NULL));
        OK(offramp_session_tokens(session, found, 256, &n));
        if (round == 0) {
            memcpy(worker->first, found, sizeof found);
            worker->n_first = n;
        }
        worker->failed |= n != worker->n_first || memcmp(found, worker->first, n * sizeof *found) != 0;
        offramp_session_free(session);
    }
    return NULL;
}

/* Two sessions of one model and one sampler on two threads say what each says alone. */
static void threads(void) {
    const unsigned rounds = count ? count : 50;
    offramp_model * model = load();
    offramp_sampler_params params;
    OK(offramp_sampler_default_params(&params, sizeof params));
    params.use_seed = 1;
    offramp_sampler * sampler = NULL;
    OK(offramp_sampler_new(model, &params, &sampler));
    static struct worker alone[2], together[2];
    const char * texts[] = { "One text", "And quite another" };
    pthread_t running[2];
    for (int i = 0; i < 2; i++) {
        alone[i] = (struct worker) { model, sampler, texts[i], 1, { 0 }, 0, 0 };
        together[i] = (struct worker) { model, sampler, texts[i], rounds, { 0 }, 0, 0 };
        work(&alone[i]);
    }
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&running[i], NULL, work, &together[i]) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(running[i], NULL) == 0);
        CHECK(!together[i].failed && together[i].n_first == alone[i].n_first);
        CHECK(memcmp(together[i].first, alone[i].first, alone[i].n_first * sizeof *alone[i].first) == 0);
    }
    offramp_sampler_free(sampler);
    offramp_model_free(model);
}

static long resident_kib(void) {
    FILE * file = fopen("/proc/self/status", "r");
    char line[256];
    long kib = -1;
    while (file != NULL && fgets(line, sizeof line, file))
        if (sscanf(line, "VmRSS: %ld kB", &kib) == 1) break;
    if (file != NULL) fclose(file);
    return kib;
}

/* Whole lives of a session, and every hundredth of the model: what is resident after a tenth of them is enough. */
static void cycles(void) {
    const unsigned lives = count ? count : 10000;
    offramp_model * model = load();
    offramp_generate_params limits = limit(4);
    long early = 0, late = 0;
    for (unsigned life = 0; life < lives; life++) {
        if (life % 100 == 99) {
            offramp_model_free(model);
            model = load();
        }
        offramp_session * session = start(model);
        set_text(session, "ab");
        OK(offramp_session_generate(session, NULL, &limits, NULL, NULL));
        CHECK(statistics(session).n_tokens == 4);
        offramp_session_free(session);
        if (life == lives / 10) early = resident_kib();
    }
    late = resident_kib();
    printf("  %u lives: %ld KiB resident after a tenth of them, %ld KiB at the end\n", lives, early, late);
    /* A leak of one byte a token would show; the allocator's own ups and downs stay below. */
    CHECK(late <= early + 2048);
    offramp_model_free(model);
}

/* ------------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char * name;
    void (*run)(void);
} tests[] = {
    { "versions", versions }, { "nulls", nulls }, { "struct_sizes", struct_sizes }, { "values", values },
    { "buffers", buffers }, { "replies", replies }, { "samplers", samplers }, { "saved_sessions", saved_sessions },
    { "callbacks", callbacks }, { "logs", logs }, { "cancels", cancels }, { "threads", threads }, { "cycles", cycles },
};

int main(int argc, char ** argv) {
    const size_t n_tests = sizeof tests / sizeof *tests;
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < n_tests; i++) puts(tests[i].name);
        return 0;
    }
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL FOLDER [TEST [COUNT]] | --list\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    folder = argv[2];
    count = argc > 4 ? (unsigned) strtoul(argv[4], NULL, 10) : 0;
    unsigned ran = 0;
    for (size_t i = 0; i < n_tests; i++) {
        if (argc > 3 && strcmp(argv[3], tests[i].name) != 0) continue;
        tests[i].run();
        printf("%s ok\n", tests[i].name);
        fflush(stdout);
        ran++;
    }
    return ran > 0 ? 0 : 2;
}
