/*
 * What the C ABI promises, from C: statuses for every mistake, whole code points, cancelling from another thread,
 * sessions beside each other, flat memory over many lives.
 *
 *   suite MODEL FOLDER [TEST [COUNT]]      without TEST all of them; `suite --list` names them
 *
 * MODEL is a tiny model of random weights with a chat template; FOLDER takes files and has `exits.gguf` and `heads.gguf`.
 * Prints one line a test, stops at the first failure.
 */
#include "suite.h"

const char * model_path;
const char * folder;
unsigned count;

offramp_model * load(void) {
    offramp_model * model = NULL;
    OK(offramp_model_load(model_path, NULL, &model));
    return model;
}

offramp_session * start(const offramp_model * model) {
    offramp_session_params params;
    OK(offramp_session_default_params(&params, sizeof params));
    params.n_ctx = 256;
    params.n_threads = 1;
    offramp_session * session = NULL;
    OK(offramp_session_new(model, &params, &session));
    return session;
}

offramp_generate_params limit(unsigned max_tokens) {
    offramp_generate_params params;
    OK(offramp_generate_default_params(&params, sizeof params));
    params.max_tokens = max_tokens;
    params.ignore_eos = 1;
    return params;
}

void set_text(offramp_session * session, const char * text) {
    OK(offramp_session_set_text(session, text, strlen(text), NULL, NULL));
}

offramp_statistics statistics(const offramp_session * session) {
    offramp_statistics found;
    OK(offramp_session_statistics(session, &found, sizeof found));
    return found;
}

char * file_in_folder(char * buffer, size_t size, const char * name) {
    snprintf(buffer, size, "%s/%s", folder, name);
    return buffer;
}

int is_whole_utf8(const char * text, size_t length) {
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

int32_t collect(const char * text, size_t length, void * user_data) {
    struct reply * reply = user_data;
    reply->broken |= length == 0 || !is_whole_utf8(text, length);
    if (reply->length + length <= sizeof reply->text) memcpy(reply->text + reply->length, text, length);
    reply->length += length;
    reply->pieces++;
    return reply->stop_after == 0 || reply->pieces < reply->stop_after;
}

static const struct {
    const char * name;
    void (*run)(void);
} tests[] = {
    { "versions", versions }, { "nulls", nulls }, { "struct_sizes", struct_sizes }, { "values", values },
    { "buffers", buffers }, { "replies", replies }, { "samplers", samplers }, { "saved_sessions", saved_sessions },
    { "callbacks", callbacks }, { "exits", exits }, { "logs", logs }, { "cancels", cancels }, { "threads", threads },
    { "cycles", cycles },
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
