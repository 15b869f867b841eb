package dev.offramp

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.flow.onCompletion
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.onStart
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext

/** What a chat's screen shows. */
sealed interface ChatState {
    data object Idle : ChatState
    data class Loading(val progress: Float) : ChatState
    data object Ready : ChatState
    data object Replying : ChatState
    data class Failed(val reason: String) : ChatState
}

/**
 * The model behind a chat's screen: collect [state] and the flow of each [send]. On Android it belongs in a ViewModel,
 * whose `onCleared` closes it, and whose activity saves with [saveTo] when it goes to the background.
 */
class ChatEngine(private val dispatcher: CoroutineDispatcher = Dispatchers.IO) : AutoCloseable {
    private val shown = MutableStateFlow<ChatState>(ChatState.Idle)
    private var model: Model? = null
    private var sampler: Sampler? = null
    private var session: Session? = null
    private val turns = mutableListOf<Message>()

    val state: StateFlow<ChatState> = shown.asStateFlow()
    val messages: List<Message> get() = turns.toList()
    val statistics: Statistics? get() = session?.statistics

    /** Loads a model, with what a phone should take of it: 4096 tokens unless told otherwise. */
    suspend fun open(path: String, nCtx: Int = 4096, temperature: Float = 0.8f) = withContext(dispatcher) {
        close()
        shown.value = ChatState.Loading(0f)
        try {
            val loaded = Model.load(path) { done ->
                shown.value = ChatState.Loading(done)
                true
            }
            model = loaded
            sampler = Sampler(loaded, temperature = temperature)
            session = Session(loaded, nCtx = nCtx)
            shown.value = ChatState.Ready
        } catch (exception: OfframpException) {
            close()
            shown.value = ChatState.Failed(exception.message.orEmpty())
        }
    }

    /** Sends one turn; the flow is the reply. Turn and reply are kept once the reply is whole or was stopped by [stop]. */
    fun send(text: String, maxTokens: Int = 512): Flow<String> {
        val session = checkNotNull(session) { "no model is open" }
        val asked = turns + Message("user", text)
        val reply = StringBuilder()
        return session.reply(asked, sampler, maxTokens, dispatcher)
            .onStart { shown.value = ChatState.Replying }
            .onEach(reply::append)
            .onCompletion { failure ->
                if (failure == null) {
                    turns += Message("user", text)
                    turns += Message("assistant", reply.toString())
                    shown.value = ChatState.Ready
                }
            }
            .catch { failure ->
                if (failure !is OfframpException) throw failure
                shown.value = ChatState.Failed(failure.message.orEmpty())
            }
    }

    fun stop() = session?.cancel()

    suspend fun saveTo(path: String) = withContext(dispatcher) { session?.save(path) }

    suspend fun restoreFrom(path: String) = withContext(dispatcher) { session?.load(path) }

    override fun close() {
        session?.close()
        sampler?.close()
        model?.close()
        session = null
        sampler = null
        model = null
        turns.clear()
        shown.value = ChatState.Idle
    }
}

/** The same on a terminal: `ChatEngineKt MODEL [MAX_TOKENS]`, greedy, one turn a line. */
fun main(arguments: Array<String>) = runBlocking {
    val engine = ChatEngine()
    engine.open(arguments[0], nCtx = 0, temperature = 0f)
    (engine.state.value as? ChatState.Failed)?.let { error(it.reason) }
    val maxTokens = arguments.getOrNull(1)?.toInt() ?: 512
    generateSequence(::readLine).forEach { line ->
        engine.send(line, maxTokens).collect(::print)
        println()
        (engine.state.value as? ChatState.Failed)?.let { error(it.reason) }
    }
    engine.close()
}
