/*
 * Every mistake that a caller can make through a pointer, a size or a number, and the status that answers it.
 */
#include "suite.h"

void versions(void) {
    CHECK(strchr(offramp_version(), '.') != NULL);
    CHECK(offramp_abi_version() == OFFRAMP_ABI_VERSION);
    CHECK(strstr(offramp_engine(), "llama-cpp-sys-2") != NULL);
}

/* Every pointer of every function that must not be NULL. */
void nulls(void) {
    offramp_model * model = load();
    offramp_session * session = start(model);
    offramp_sampler * sampler = NULL;
    offramp_model_info info;
    offramp_memory memory;
    size_t n = 77;
    int32_t ids[4];
    char text[4];
    offramp_message turn = { "user", "x" }, no_role = { NULL, "x" }, no_content = { "user", NULL };
    const char * no_stop[1] = { NULL };
    offramp_generate_params generate = limit(1), no_stops = limit(1), no_ids = limit(1);
    generate.stop = no_stop;
    generate.n_stop = no_stops.n_stop = no_ids.n_stop_token_ids = 1;
    offramp_statistics found;
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
    NULLED(offramp_chat_render(NULL, &turn, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, NULL, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, &no_role, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, &no_content, 1, text, 4, &n));
    NULLED(offramp_chat_render(model, &turn, 1, NULL, 4, &n));
    NULLED(offramp_chat_render(model, &turn, 1, text, 4, NULL));
    NULLED(offramp_tokenize(NULL, "a", 1, 0, 0, ids, 4, &n));
    NULLED(offramp_tokenize(model, NULL, 1, 0, 0, ids, 4, &n));
    NULLED(offramp_tokenize(model, "a", 1, 0, 0, NULL, 4, &n));
    NULLED(offramp_tokenize(model, "a", 1, 0, 0, ids, 4, NULL));
    NULLED(offramp_tokenize(model, "a", 1, 0, 0, NULL, 0, NULL));
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
    NULLED(offramp_session_set_chat(NULL, &turn, 1, NULL, NULL));
    NULLED(offramp_session_set_chat(session, NULL, 1, NULL, NULL));
    NULLED(offramp_session_set_chat(session, &no_role, 1, NULL, NULL));
    NULLED(offramp_session_set_chat(session, &no_content, 1, NULL, NULL));
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
    NULLED(offramp_session_generate(session, NULL, &no_stops, NULL, NULL));
    NULLED(offramp_session_generate(session, NULL, &no_ids, NULL, NULL));
    NULLED(offramp_session_statistics(NULL, &found, sizeof found));
    NULLED(offramp_session_statistics(session, NULL, sizeof(offramp_statistics)));
#undef NULLED
    CHECK(n == 77 && sampler == NULL);
    offramp_model_free(NULL);
    offramp_sampler_free(NULL);
    offramp_session_free(NULL);
    offramp_session_free(session);
    offramp_model_free(model);
}

void struct_sizes(void) {
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
    session = start(model);
    const size_t wrong[] = { 0, 1, 8, 31, 1000, 1 << 30, (size_t) -1 };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        FAILS(OFFRAMP_ERROR_ABI, offramp_model_default_params(&model_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_default_params(&session_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_sampler_default_params(&sampler_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_generate_default_params(&generate_params, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_model_get_info(model, &info, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_memory_estimate(model_path, NULL, &memory, wrong[i]));
        FAILS(OFFRAMP_ERROR_ABI, offramp_session_statistics(session, &found, wrong[i]));
    }
    FAILS(OFFRAMP_ERROR_ABI, offramp_sampler_default_params(&sampler_params, sizeof sampler_params - 8));
    FAILS(OFFRAMP_ERROR_ABI, offramp_memory_estimate(model_path, NULL, &memory, sizeof memory + 1));
    FAILS(OFFRAMP_ERROR_ABI, offramp_session_statistics(session, &found, sizeof found - 8));
    offramp_session_free(session);
    session = NULL;
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
        offramp_session_free(session);
        session = NULL;
    }
    CHECK(other == NULL && sampler == NULL);
    offramp_model_free(model);
}

void values(void) {
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
    sampler_params.temperature = 1;
    sampler_params.dry_base = 0;
    FAILS(OFFRAMP_ERROR_VALUE, offramp_sampler_new(model, &sampler_params, &sampler));
    sampler_params.dry_base = 1.75f;
    sampler_params.n_dry_sequence_breakers = 1;
    FAILS(OFFRAMP_ERROR_NULL, offramp_sampler_new(model, &sampler_params, &sampler));
    sampler_params.n_dry_sequence_breakers = 0;
    sampler_params.repeat_last_n = -2;
    FAILS(OFFRAMP_ERROR_VALUE, offramp_sampler_new(model, &sampler_params, &sampler));
    sampler_params.repeat_last_n = -1;
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

void buffers(void) {
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
