/*
 * The JNI side of dev.offramp.Native: moves arguments between the JVM and offramp.h, and nothing more.
 *
 * Texts pass as byte arrays of UTF-8. NewStringUTF would take "modified UTF-8", in which an emoji is something else, and
 * ends the process on what it does not like. A callback runs on the thread of its call, so that the call's JNIEnv is
 * the right one; an exception that a callback leaves pending stops the call and is thrown where the call returns.
 */
#include <jni.h>
#include <offramp.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NATIVE(result, name) JNIEXPORT result JNICALL Java_dev_offramp_Native_##name

static jbyteArray bytes_of(JNIEnv * env, const char * text, size_t length) {
    if (length > INT32_MAX) return NULL;
    jbyteArray bytes = (*env)->NewByteArray(env, (jsize) length);
    if (bytes != NULL) (*env)->SetByteArrayRegion(env, bytes, 0, (jsize) length, (const jbyte *) text);
    return bytes;
}

/* Throws OfframpException(status, reason) unless the status is OFFRAMP_OK or something is pending already. */
static void check(JNIEnv * env, int32_t status) {
    if (status == OFFRAMP_OK || (*env)->ExceptionCheck(env)) return;
    const char * reason = offramp_last_error();
    jclass type = (*env)->FindClass(env, "dev/offramp/OfframpException");
    if (type == NULL) return;
    jmethodID make = (*env)->GetMethodID(env, type, "<init>", "(I[B)V");
    jbyteArray bytes = bytes_of(env, reason, strlen(reason));
    if (make == NULL || bytes == NULL) return;
    jobject exception = (*env)->NewObject(env, type, make, (jint) status, bytes);
    if (exception != NULL) (*env)->Throw(env, exception);
}

/* A NUL-terminated copy of a byte array, to be freed; NULL for null, and where memory is out. */
static char * text_of(JNIEnv * env, jbyteArray bytes) {
    if (bytes == NULL) return NULL;
    jsize length = (*env)->GetArrayLength(env, bytes);
    char * text = malloc((size_t) length + 1);
    if (text == NULL) return NULL;
    (*env)->GetByteArrayRegion(env, bytes, 0, length, (jbyte *) text);
    text[length] = '\0';
    return text;
}

/* A Kotlin function object behind a C callback. */
struct callback {
    JNIEnv * env;
    jobject object;
    jmethodID method;
};

static struct callback callback_of(JNIEnv * env, jobject object, const char * name, const char * signature) {
    struct callback callback = { env, object, NULL };
    if (object != NULL) callback.method = (*env)->GetMethodID(env, (*env)->GetObjectClass(env, object), name, signature);
    return callback;
}

static int32_t on_progress(float done, void * user_data) {
    struct callback * callback = user_data;
    jboolean more = (*callback->env)->CallBooleanMethod(callback->env, callback->object, callback->method, (jfloat) done);
    return !(*callback->env)->ExceptionCheck(callback->env) && more;
}

static int32_t on_token(const char * text, size_t length, void * user_data) {
    struct callback * callback = user_data;
    JNIEnv * env = callback->env;
    jbyteArray bytes = bytes_of(env, text, length);
    if (bytes == NULL) return 0;
    jboolean more = (*env)->CallBooleanMethod(env, callback->object, callback->method, bytes);
    /* A reply has more pieces than a frame of local references has room for. */
    (*env)->DeleteLocalRef(env, bytes);
    return !(*env)->ExceptionCheck(env) && more;
}

NATIVE(jbyteArray, version)(JNIEnv * env, jclass self) {
    (void) self;
    return bytes_of(env, offramp_version(), strlen(offramp_version()));
}

NATIVE(jlong, modelLoad)(JNIEnv * env, jclass self, jbyteArray path, jbyteArray heads, jobject progress) {
    (void) self;
    struct callback callback = callback_of(env, progress, "onProgress", "(F)Z");
    char * c_path = text_of(env, path), * c_heads = text_of(env, heads);
    offramp_model_params params;
    offramp_model * model = NULL;
    int32_t status = offramp_model_default_params(&params, sizeof params);
    params.heads_path = c_heads;
    params.progress = callback.method != NULL ? on_progress : NULL;
    params.progress_user_data = &callback;
    if (status == OFFRAMP_OK) status = offramp_model_load(c_path, &params, &model);
    free(c_path);
    free(c_heads);
    check(env, status);
    return (jlong) (intptr_t) model;
}

NATIVE(void, modelFree)(JNIEnv * env, jclass self, jlong model) {
    (void) env, (void) self;
    offramp_model_free((offramp_model *) (intptr_t) model);
}

NATIVE(jbyteArray, modelDescription)(JNIEnv * env, jclass self, jlong model) {
    (void) self;
    offramp_model_info info;
    int32_t status = offramp_model_get_info((offramp_model *) (intptr_t) model, &info, sizeof info);
    check(env, status);
    return status == OFFRAMP_OK ? bytes_of(env, info.description, strlen(info.description)) : NULL;
}

NATIVE(jlong, samplerNew)(JNIEnv * env, jclass self, jlong model, jfloat temperature, jint top_k, jfloat top_p,
                          jfloat min_p, jlong seed, jbyteArray grammar) {
    (void) self;
    char * c_grammar = text_of(env, grammar);
    offramp_sampler_params params;
    offramp_sampler * sampler = NULL;
    int32_t status = offramp_sampler_default_params(&params, sizeof params);
    params.temperature = temperature;
    params.top_k = top_k;
    params.top_p = top_p;
    params.min_p = min_p;
    params.use_seed = seed >= 0;
    params.seed = (uint32_t) seed;
    params.grammar = c_grammar;
    if (status == OFFRAMP_OK) status = offramp_sampler_new((offramp_model *) (intptr_t) model, &params, &sampler);
    free(c_grammar);
    check(env, status);
    return (jlong) (intptr_t) sampler;
}

NATIVE(void, samplerFree)(JNIEnv * env, jclass self, jlong sampler) {
    (void) env, (void) self;
    offramp_sampler_free((offramp_sampler *) (intptr_t) sampler);
}

NATIVE(jlong, sessionNew)(JNIEnv * env, jclass self, jlong model, jint n_ctx, jint n_threads, jint exits, jint kv,
                          jfloat agreement) {
    (void) self;
    offramp_session_params params;
    offramp_session * session = NULL;
    int32_t status = offramp_session_default_params(&params, sizeof params);
    params.n_ctx = (uint32_t) n_ctx;
    params.n_threads = (uint32_t) n_threads;
    params.exits = exits;
    params.kv = kv;
    params.agreement = agreement;
    if (status == OFFRAMP_OK) status = offramp_session_new((offramp_model *) (intptr_t) model, &params, &session);
    check(env, status);
    return (jlong) (intptr_t) session;
}

NATIVE(void, sessionFree)(JNIEnv * env, jclass self, jlong session) {
    (void) env, (void) self;
    offramp_session_free((offramp_session *) (intptr_t) session);
}

NATIVE(void, sessionCancel)(JNIEnv * env, jclass self, jlong session) {
    (void) self;
    check(env, offramp_session_cancel((offramp_session *) (intptr_t) session));
}

NATIVE(void, sessionClearCancel)(JNIEnv * env, jclass self, jlong session) {
    (void) self;
    check(env, offramp_session_clear_cancel((offramp_session *) (intptr_t) session));
}

/* `texts` holds role and content of each message in turn. */
NATIVE(void, sessionSetChat)(JNIEnv * env, jclass self, jlong session, jobjectArray texts, jobject progress) {
    (void) self;
    struct callback callback = callback_of(env, progress, "onProgress", "(F)Z");
    size_t n = (size_t) (*env)->GetArrayLength(env, texts) / 2;
    offramp_message * messages = calloc(n > 0 ? n : 1, sizeof *messages);
    if (messages == NULL) return;
    for (size_t i = 0; i < 2 * n; i++) {
        jbyteArray bytes = (*env)->GetObjectArrayElement(env, texts, (jsize) i);
        *(i % 2 == 0 ? &messages[i / 2].role : &messages[i / 2].content) = text_of(env, bytes);
        (*env)->DeleteLocalRef(env, bytes);
    }
    int32_t status = offramp_session_set_chat((offramp_session *) (intptr_t) session, messages, n,
                                              callback.method != NULL ? on_progress : NULL, &callback);
    for (size_t i = 0; i < n; i++) {
        free((char *) messages[i].role);
        free((char *) messages[i].content);
    }
    free(messages);
    check(env, status);
}

NATIVE(void, sessionGenerate)(JNIEnv * env, jclass self, jlong session, jlong sampler, jint max_tokens, jobject sink) {
    (void) self;
    struct callback callback = callback_of(env, sink, "onText", "([B)Z");
    offramp_generate_params params;
    int32_t status = offramp_generate_default_params(&params, sizeof params);
    params.max_tokens = (uint32_t) max_tokens;
    if (status == OFFRAMP_OK) {
        status = offramp_session_generate((offramp_session *) (intptr_t) session, (offramp_sampler *) (intptr_t) sampler,
                                          &params, callback.method != NULL ? on_token : NULL, &callback);
    }
    check(env, status);
}

/* stop reason, tokens, tokens a second, mean depth, reused and decoded prompt tokens, draft acceptance */
NATIVE(jdoubleArray, sessionStatistics)(JNIEnv * env, jclass self, jlong session) {
    (void) self;
    offramp_statistics found;
    int32_t status = offramp_session_statistics((offramp_session *) (intptr_t) session, &found, sizeof found);
    check(env, status);
    if (status != OFFRAMP_OK) return NULL;
    const jdouble numbers[] = { found.stop_reason, (jdouble) found.n_tokens, found.tokens_per_second, found.mean_depth,
                                (jdouble) found.n_prompt_reused, (jdouble) found.n_prompt_decoded,
                                found.draft_acceptance };
    const jsize n = sizeof numbers / sizeof *numbers;
    jdoubleArray array = (*env)->NewDoubleArray(env, n);
    if (array != NULL) (*env)->SetDoubleArrayRegion(env, array, 0, n, numbers);
    return array;
}

NATIVE(void, sessionSave)(JNIEnv * env, jclass self, jlong session, jbyteArray path) {
    (void) self;
    char * c_path = text_of(env, path);
    int32_t status = offramp_session_save((offramp_session *) (intptr_t) session, c_path);
    free(c_path);
    check(env, status);
}

NATIVE(void, sessionLoad)(JNIEnv * env, jclass self, jlong session, jbyteArray path) {
    (void) self;
    char * c_path = text_of(env, path);
    int32_t status = offramp_session_load((offramp_session *) (intptr_t) session, c_path);
    free(c_path);
    check(env, status);
}
