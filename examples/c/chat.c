/*
 * A chat on stdin and stdout: each line is a turn, the reply comes as it is made.
 *
 *   cc -std=c11 chat.c $(pkg-config --cflags --libs offramp) -o chat
 *   ./chat MODEL [--greedy] [MAX_TOKENS]
 */
#include <offramp.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TURNS = 64, MAX_LINE = 4096, MAX_REPLY = 1 << 16 };

static int fail(const char * what) {
    fprintf(stderr, "chat: %s: %s\n", what, offramp_last_error());
    return 1;
}

struct reply {
    char text[MAX_REPLY];
    size_t length;
};

/* Pieces are whole code points: they can be printed, or handed to a text view, as they come. */
static int32_t show(const char * text, size_t length, void * user_data) {
    struct reply * reply = user_data;
    if (reply->length + length + 1 > sizeof reply->text) return 0;
    memcpy(reply->text + reply->length, text, length);
    reply->length += length;
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    return 1;
}

static int32_t loading(float done, void * user_data) {
    (void) user_data;
    fprintf(stderr, "\rloading %3.0f %%%s", done * 100, done < 1 ? "" : "\n");
    return 1;
}

static char * copy(const char * text) {
    char * copied = malloc(strlen(text) + 1);
    if (copied == NULL) abort();
    return strcpy(copied, text);
}

static int chat(offramp_session * session, const offramp_sampler * sampler, const offramp_generate_params * limits) {
    static offramp_message turns[MAX_TURNS];
    static struct reply reply;
    static char line[MAX_LINE];
    size_t n = 0;
    int status = 0;
    while (n + 2 <= MAX_TURNS && fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        turns[n++] = (offramp_message) { "user", copy(line) };
        /* The whole conversation each time: what is in the cache already is not decoded again. */
        if (offramp_session_set_chat(session, turns, n, NULL, NULL) != OFFRAMP_OK) {
            status = fail("prompt");
            break;
        }
        reply.length = 0;
        if (offramp_session_generate(session, sampler, limits, show, &reply) != OFFRAMP_OK) {
            status = fail("reply");
            break;
        }
        reply.text[reply.length] = '\0';
        turns[n++] = (offramp_message) { "assistant", copy(reply.text) };
        putchar('\n');
        offramp_statistics found;
        if (offramp_session_statistics(session, &found, sizeof found) == OFFRAMP_OK) {
            fprintf(stderr, "%llu tokens, %.1f a second, %.1f blocks deep\n", (unsigned long long) found.n_tokens,
                    found.tokens_per_second, found.mean_depth);
        }
    }
    while (n > 0) free((char *) turns[--n].content);
    return status;
}

int main(int argc, char ** argv) {
    offramp_model_params model_params;
    offramp_sampler_params sampler_params;
    offramp_generate_params limits;
    if (argc < 2 || offramp_model_default_params(&model_params, sizeof model_params) != OFFRAMP_OK ||
        offramp_sampler_default_params(&sampler_params, sizeof sampler_params) != OFFRAMP_OK ||
        offramp_generate_default_params(&limits, sizeof limits) != OFFRAMP_OK) {
        fprintf(stderr, "usage: %s MODEL [--greedy] [MAX_TOKENS]\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--greedy") == 0) sampler_params.temperature = 0;
        else limits.max_tokens = (uint32_t) strtoul(argv[i], NULL, 10);
    }
    model_params.progress = loading;
    offramp_model * model = NULL;
    offramp_sampler * sampler = NULL;
    offramp_session * session = NULL;
    int status = 1;
    if (offramp_model_load(argv[1], &model_params, &model) != OFFRAMP_OK) fail("model");
    else if (offramp_sampler_new(model, &sampler_params, &sampler) != OFFRAMP_OK) fail("sampler");
    else if (offramp_session_new(model, NULL, &session) != OFFRAMP_OK) fail("session");
    else status = chat(session, sampler, &limits);
    offramp_session_free(session);
    offramp_sampler_free(sampler);
    offramp_model_free(model);
    return status;
}
