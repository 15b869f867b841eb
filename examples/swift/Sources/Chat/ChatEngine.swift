// The part of a chat app behind its screen. In an app it is `@Observable` or an ObservableObject; on a terminal `main.swift` drives it.
import Offramp

/// What a chat's screen shows.
enum ChatState: Sendable, Equatable {
    case idle
    case loading
    case ready
    case replying
    case failed(String)
}

@MainActor
final class ChatEngine {
    private(set) var state = ChatState.idle
    private(set) var messages: [Message] = []
    private var session: Session?
    private var sampler: Sampler?

    /// Loads a model off the main actor.
    func open(path: String, contextLength: UInt32 = 4096, temperature: Float = 0.8) async {
        state = .loading
        do {
            let opened = try await Task.detached {
                let model = try Model(path: path)
                let session = try Session(model: model, contextLength: contextLength)
                return (session, try Sampler(model: model, temperature: temperature))
            }.value
            session = opened.0
            sampler = opened.1
            state = .ready
        } catch {
            state = .failed("\(error)")
        }
    }

    /// Sends one turn and shows its reply in pieces. Turn and reply are kept once the reply is whole or was stopped by `stop`.
    func send(_ text: String, maxTokens: UInt32 = 512, show: (String) -> Void) async {
        guard let session, state == .ready else { return }
        state = .replying
        let asked = messages + [Message(role: "user", content: text)]
        var reply = ""
        do {
            for try await piece in session.reply(to: asked, sampler: sampler, maxTokens: maxTokens) {
                reply += piece
                show(piece)
            }
            messages = asked + [Message(role: "assistant", content: reply)]
            state = .ready
        } catch {
            state = .failed("\(error)")
        }
    }

    func stop() { session?.cancel() }

    /// For the moment when the app goes to the background.
    func save(to path: String) async throws { try await session?.save(to: path) }

    func restore(from path: String) async throws { try await session?.load(from: path) }
}
