package dev.offramp

/** The functions of `offramp_jni.c`. Handles are addresses; [Model], [Sampler] and [Session] are their owners. */
internal object Native {
    init {
        System.loadLibrary("offramp_jni")
    }

    fun interface Progress {
        /** The share that is done, from 0 to 1; false stops the call. */
        fun onProgress(done: Float): Boolean
    }

    fun interface Sink {
        /** Whole code points of UTF-8; false ends the reply. */
        fun onText(bytes: ByteArray): Boolean
    }

    @JvmStatic external fun version(): ByteArray
    @JvmStatic external fun modelLoad(path: ByteArray, heads: ByteArray?, progress: Progress?): Long
    @JvmStatic external fun modelFree(model: Long)
    @JvmStatic external fun modelDescription(model: Long): ByteArray
    @JvmStatic external fun samplerNew(
        model: Long, temperature: Float, topK: Int, topP: Float, minP: Float, seed: Long, grammar: ByteArray?,
    ): Long
    @JvmStatic external fun samplerFree(sampler: Long)
    @JvmStatic external fun sessionNew(model: Long, nCtx: Int, nThreads: Int, exits: Int, kv: Int, agreement: Float): Long
    @JvmStatic external fun sessionFree(session: Long)
    @JvmStatic external fun sessionCancel(session: Long)
    @JvmStatic external fun sessionClearCancel(session: Long)
    @JvmStatic external fun sessionSetChat(session: Long, texts: Array<ByteArray>, progress: Progress?)
    @JvmStatic external fun sessionGenerate(session: Long, sampler: Long, maxTokens: Int, sink: Sink?)
    @JvmStatic external fun sessionStatistics(session: Long): DoubleArray
    @JvmStatic external fun sessionSave(session: Long, path: ByteArray)
    @JvmStatic external fun sessionLoad(session: Long, path: ByteArray)
}
