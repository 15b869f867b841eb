/*
 * Many runs: cancelled at random moments, beside each other, and one after another with an eye on the memory.
 */
#include "suite.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

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
void cancels(void) {
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
void threads(void) {
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
void cycles(void) {
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
