/*
 * Replies, samplers, saved sessions, and callbacks that stop, cancel, free and log.
 */
#include "suite.h"

#include <stdatomic.h>

void replies(void) {
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
    /* Who ends a reply is not called again with what was held back for a stop text that did not come. */
    again.stop_after = 1;
    for (size_t i = 0; i < reply.length && i < 30; i++) {
        char never[] = { reply.text[i], '\1', 0 };
        const char * nevers[] = { never };
        if ((unsigned char) never[0] >= 0x80) continue;
        params.stop = nevers;
        again.pieces = 0;
        OK(offramp_session_set_chat(session, turns, 1, NULL, NULL));
        OK(offramp_session_generate(session, NULL, &params, collect, &again));
        CHECK(again.pieces <= 1);
    }
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

void samplers(void) {
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
        /* Without what is cached of the first text: a prompt's batch rounds otherwise than its last token alone. */
        OK(offramp_session_clear(session));
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
    /* Every parameter counts: with llama.cpp's other samplers the text is another one. */
    const char * breakers[] = { ".", "\n" };
    memset(replies_, 0, sizeof replies_);
    for (int i = 0; i < 2; i++) {
        OK(offramp_sampler_default_params(&params, sizeof params));
        params.use_seed = 1;
        params.seed = UINT32_MAX; /* a seed like any other, not llama.cpp's word for a random one */
        params.temperature = 1.5f;
        if (i == 1) {
            params.typical_p = 0.5f;
            params.xtc_probability = 0.5f;
            params.dry_multiplier = 5;
            params.dry_penalty_last_n = params.repeat_last_n = -1;
            params.repeat_penalty = 1.5f;
            params.dry_sequence_breakers = breakers;
            params.n_dry_sequence_breakers = 2;
        }
        OK(offramp_sampler_new(model, &params, &sampler));
        OK(offramp_session_clear(session));
        set_text(session, "Once");
        OK(offramp_session_generate(session, sampler, &limits, collect, &replies_[i]));
        offramp_sampler_free(sampler);
    }
    CHECK(replies_[0].length != replies_[1].length ||
          memcmp(replies_[0].text, replies_[1].text, replies_[0].length) != 0);
    /* A token that ends a reply, and one that may not yet. */
    int32_t ids[256];
    size_t n;
    OK(offramp_session_clear(session));
    set_text(session, "Once");
    OK(offramp_session_generate(session, NULL, &limits, NULL, NULL));
    OK(offramp_session_tokens(session, ids, 256, &n));
    limits.stop_token_ids = &ids[n - 20];
    limits.n_stop_token_ids = 1;
    set_text(session, "Once");
    OK(offramp_session_generate(session, NULL, &limits, NULL, NULL));
    CHECK(statistics(session).stop_reason == OFFRAMP_STOP_STOP && statistics(session).n_tokens <= 20);
    limits.min_tokens = 40;
    set_text(session, "Once");
    OK(offramp_session_generate(session, NULL, &limits, NULL, NULL));
    CHECK(statistics(session).stop_reason == OFFRAMP_STOP_LENGTH && statistics(session).n_tokens == 40);
    offramp_session_free(session);
    offramp_model_free(model);
}

void saved_sessions(void) {
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

static int cancelling_progress(float done, void * user_data) {
    OK(offramp_session_cancel(user_data));
    return done < 0;
}

void callbacks(void) {
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
    /* A progress callback's 0 is for its own call; a cancel that comes with it holds. */
    tokens[0]++;
    FAILS(OFFRAMP_ERROR_CANCELLED, offramp_session_set_prompt(session, tokens, 200, cancelling_progress, session));
    FAILS(OFFRAMP_ERROR_CANCELLED, offramp_session_set_prompt(session, tokens, 200, NULL, NULL));
    OK(offramp_session_clear_cancel(session));
    OK(offramp_session_set_prompt(session, tokens, 200, NULL, NULL));
    offramp_session_free(session);
    offramp_model_free(model);
}

/*
 * A model of 24 blocks of which those above the second add nothing, with heads that are therefore right: tokens leave
 * after the second block, or are drafted there, where that pays; the text is the same.
 */
void exits(void) {
    const int32_t modes[] = { OFFRAMP_EXITS_OFF, OFFRAMP_EXITS_CALIBRATED, OFFRAMP_EXITS_EXACT };
    char path[512], heads[512];
    offramp_model_params params;
    OK(offramp_model_default_params(&params, sizeof params));
    params.heads_path = file_in_folder(heads, sizeof heads, "heads.gguf");
    offramp_model * model = NULL;
    OK(offramp_model_load(file_in_folder(path, sizeof path, "exits.gguf"), &params, &model));
    offramp_model_info info;
    OK(offramp_model_get_info(model, &info, sizeof info));
    CHECK(info.has_heads && info.n_layer == 24);
    static struct reply replies_[3];
    memset(replies_, 0, sizeof replies_);
    offramp_generate_params limits = limit(100);
    for (int mode = 0; mode < 3; mode++) {
        offramp_session_params session_params;
        OK(offramp_session_default_params(&session_params, sizeof session_params));
        session_params.n_ctx = 256;
        session_params.n_threads = 1;
        session_params.agreement = 0.9f;
        session_params.kv = OFFRAMP_KV_CATCH_UP;
        session_params.exits = modes[mode];
        offramp_session * session = NULL;
        OK(offramp_session_new(model, &session_params, &session));
        /* Whether something pays is measured, so that a disturbed reply may have none of it; 20 of them do not. */
        uint64_t n_early = 0;
        for (int i = 0; i < 20 && (i == 0 || (n_early == 0 && mode > 0)); i++) {
            memset(&replies_[mode], 0, sizeof replies_[mode]);
            OK(offramp_session_clear(session));
            set_text(session, "one two one two one two one two");
            OK(offramp_session_generate(session, NULL, &limits, collect, &replies_[mode]));
            offramp_statistics found = statistics(session);
            uint64_t n_layers = 0, n_blocks = 24 * (found.n_full + found.n_screen);
            for (uint64_t il = 0; il < found.n_layer; il++) {
                n_layers += found.layer_exits[il];
                n_blocks += found.layer_exits[il] * (il + 1);
                CHECK(il == 1 || found.layer_exits[il] == 0);
            }
            CHECK(found.n_tokens == 100 && found.n_full + found.n_screen + n_layers == 100);
            CHECK(found.mean_depth == (double) n_blocks / 100);
            CHECK(found.n_accepted <= found.n_drafted);
            CHECK(found.draft_acceptance * (double) found.n_drafted == (double) found.n_accepted);
            CHECK(found.draft_acceptance > 0 || found.n_accepted == 0);
            n_early = mode == 1 ? n_layers : found.n_accepted;
            CHECK(mode == 1 || n_layers == 0);
            CHECK(mode > 0 || found.n_drafted == 0);
        }
        CHECK((n_early > 0) == (mode > 0));
        CHECK(replies_[mode].length == replies_[0].length);
        CHECK(memcmp(replies_[mode].text, replies_[0].text, replies_[0].length) == 0);
        offramp_session_free(session);
    }
    offramp_model_free(model);
}

static void count_lines(int32_t level, const char * text, size_t length, void * user_data) {
    CHECK(level >= OFFRAMP_LOG_ERROR && level <= OFFRAMP_LOG_DEBUG && is_whole_utf8(text, length));
    CHECK(offramp_log_set(NULL, NULL, 0) == OFFRAMP_ERROR_BUSY);
    atomic_fetch_add((atomic_int *) user_data, 1);
}

void logs(void) {
    atomic_int lines = 0;
    OK(offramp_log_set(count_lines, &lines, OFFRAMP_LOG_DEBUG));
    offramp_model_free(load());
    CHECK(atomic_load(&lines) > 0);
    OK(offramp_log_set(NULL, NULL, 0));
    int before = atomic_load(&lines);
    offramp_model_free(load());
    CHECK(atomic_load(&lines) == before);
}
