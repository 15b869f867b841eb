package dev.offramp

import java.util.concurrent.locks.ReentrantLock
import java.util.concurrent.locks.ReentrantReadWriteLock
import kotlin.concurrent.read
import kotlin.concurrent.withLock
import kotlin.concurrent.write
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.launch

/** A status of the library that was not success; the numbers are those of `offramp.h`. */
class OfframpException(val status: Int, reason: ByteArray) : Exception(reason.decodeToString()) {
    val isCancelled: Boolean get() = status == -400
}

/** Version of the library that is loaded. */
val offrampVersion: String get() = Native.version().decodeToString()

/** An address that is freed once, and not while a call that was given it goes on. */
internal class Handle(private var address: Long, private val free: (Long) -> Unit) {
    private val life = ReentrantReadWriteLock()

    fun <T> use(call: (Long) -> T): T = life.read {
        check(address != 0L) { "closed" }
        call(address)
    }

    fun close() = life.write {
        if (address != 0L) free(address)
        address = 0L
    }
}

/** A loaded model. Any number of threads may use one at the same time. */
class Model private constructor(address: Long) : AutoCloseable {
    internal val handle = Handle(address, Native::modelFree)

    /** Architecture, size class and quantization. */
    val description: String get() = handle.use { Native.modelDescription(it).decodeToString() }

    override fun close() = handle.close()

    companion object {
        /** Blocks for as long as the loading takes; a false answer of [progress] stops it. */
        fun load(path: String, heads: String? = null, progress: ((Float) -> Boolean)? = null): Model =
            Model(Native.modelLoad(path.encodeToByteArray(), heads?.encodeToByteArray(), progress?.let(Native::Progress)))
    }
}

/** How tokens are picked; a temperature of 0 is greedy. */
class Sampler(
    model: Model,
    temperature: Float = 0.8f,
    topK: Int = 40,
    topP: Float = 0.95f,
    minP: Float = 0.05f,
    seed: UInt? = null,
    grammar: String? = null,
) : AutoCloseable {
    internal val handle = Handle(
        model.handle.use {
            Native.samplerNew(it, temperature, topK, topP, minP, seed?.toLong() ?: -1, grammar?.encodeToByteArray())
        },
        Native::samplerFree,
    )

    override fun close() = handle.close()
}

/** Whether tokens may leave the model early. */
enum class Exits { OFF, CALIBRATED, EXACT }

/** Where the keys and values come from that an exit left out. */
enum class Kv { AUTO, PREDICT, CATCH_UP, PROPAGATE }

data class Message(val role: String, val content: String)

/** Why a reply ended. */
enum class StopReason { NONE, EOS, LENGTH, STOP, CANCELLED }

data class Statistics(
    val stopReason: StopReason,
    val tokens: Long,
    val tokensPerSecond: Double,
    /** Blocks of the model that ran for a token, on the average. */
    val meanDepth: Double,
    val promptReused: Long,
    val promptDecoded: Long,
    val draftAcceptance: Double,
)

/** A conversation on a model: one call at a time, which this waits for; [cancel] comes from any thread. */
class Session(
    model: Model,
    nCtx: Int = 0,
    nThreads: Int = 0,
    exits: Exits = Exits.CALIBRATED,
    kv: Kv = Kv.AUTO,
    agreement: Float = 0.99f,
) : AutoCloseable {
    private val handle = Handle(
        model.handle.use { Native.sessionNew(it, nCtx, nThreads, exits.ordinal, kv.ordinal, agreement) },
        Native::sessionFree,
    )
    private val calls = ReentrantLock()

    private fun <T> call(body: (Long) -> T): T = calls.withLock { handle.use(body) }

    /** Stops the call in progress, as soon as a fraction of a token. */
    fun cancel() = handle.use(Native::sessionCancel)

    /** Makes a conversation the session's text. What did not change since the last time is not decoded again. */
    fun setChat(messages: List<Message>, progress: ((Float) -> Boolean)? = null) = call { session ->
        Native.sessionClearCancel(session)
        val texts = messages.flatMap { listOf(it.role.encodeToByteArray(), it.content.encodeToByteArray()) }
        Native.sessionSetChat(session, texts.toTypedArray(), progress?.let(Native::Progress))
    }

    /** Generates a reply and blocks until its end; a false answer of [onText] ends it. Greedy without a sampler. */
    fun generate(sampler: Sampler? = null, maxTokens: Int = 0, onText: (String) -> Boolean) = call { session ->
        val run = { picking: Long ->
            Native.sessionGenerate(session, picking, maxTokens) { bytes -> onText(bytes.decodeToString()) }
        }
        if (sampler == null) run(0L) else sampler.handle.use(run)
    }

    /** The reply to [messages] in pieces. A collector that goes away cancels it. */
    fun reply(
        messages: List<Message>,
        sampler: Sampler? = null,
        maxTokens: Int = 0,
        dispatcher: CoroutineDispatcher = Dispatchers.IO,
    ): Flow<String> = callbackFlow {
        launch(dispatcher) {
            try {
                setChat(messages)
                generate(sampler, maxTokens) { text -> trySendBlocking(text).isSuccess }
                close()
            } catch (exception: OfframpException) {
                close(exception)
            }
        }
        awaitClose { cancel() }
    }.buffer(64)

    /** About the last prompt and the last reply. */
    val statistics: Statistics
        get() {
            val numbers = call(Native::sessionStatistics)
            return Statistics(
                stopReason = StopReason.entries[numbers[0].toInt()],
                tokens = numbers[1].toLong(),
                tokensPerSecond = numbers[2],
                meanDepth = numbers[3],
                promptReused = numbers[4].toLong(),
                promptDecoded = numbers[5].toLong(),
                draftAcceptance = numbers[6],
            )
        }

    /** Writes the conversation and its cache to a file, whole or not at all. */
    fun save(path: String) = call { Native.sessionSave(it, path.encodeToByteArray()) }

    /** Goes on with what [save] wrote, on the same model. */
    fun load(path: String) = call { Native.sessionLoad(it, path.encodeToByteArray()) }

    /** Ends the call in progress and frees the session. */
    override fun close() {
        cancel()
        calls.withLock { handle.close() }
    }
}
