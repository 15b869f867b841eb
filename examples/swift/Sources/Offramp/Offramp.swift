// Offramp for Swift: owners of the C handles, an actor around a session, replies as an AsyncThrowingStream.
import COfframp
import Foundation

/// A status of the library that was not success; the numbers are those of offramp.h.
public struct OfframpError: Error, CustomStringConvertible {
    public let status: Int32
    public let description: String

    public var isCancelled: Bool { status == OFFRAMP_ERROR_CANCELLED }
}

private func check(_ status: Int32) throws {
    guard status != OFFRAMP_OK else { return }
    throw OfframpError(status: status, description: String(cString: offramp_last_error()))
}

/// A Swift closure behind a C callback; the C side borrows it for the length of one call.
private final class Box<Closure: Sendable>: Sendable {
    let closure: Closure
    init(_ closure: Closure) { self.closure = closure }

    var pointer: UnsafeMutableRawPointer { Unmanaged.passUnretained(self).toOpaque() }

    static func at(_ pointer: UnsafeMutableRawPointer?) -> Closure? {
        pointer.map { Unmanaged<Box<Closure>>.fromOpaque($0).takeUnretainedValue().closure }
    }
}

public typealias Progress = @Sendable (Float) -> Bool

private func onProgress(done: Float, data: UnsafeMutableRawPointer?) -> Int32 {
    guard let progress = Box<Progress>.at(data) else { return 1 }
    return progress(done) ? 1 : 0
}

private typealias Sink = @Sendable (String) -> Bool

private func onToken(text: UnsafePointer<CChar>?, length: Int, data: UnsafeMutableRawPointer?) -> Int32 {
    guard let text, let sink = Box<Sink>.at(data) else { return 0 }
    // Whole code points, so that this never replaces anything.
    let bytes = UnsafeRawBufferPointer(start: text, count: length)
    return sink(String(decoding: bytes, as: UTF8.self)) ? 1 : 0
}

/// A loaded model: immutable, shared by sessions on any threads.
public final class Model: @unchecked Sendable {
    let handle: OpaquePointer

    /// Blocks for as long as the loading takes: call it off the main actor. A false answer of `progress` stops it.
    public init(path: String, heads: String? = nil, progress: Progress? = nil) throws {
        var params = offramp_model_params()
        try check(offramp_model_default_params(&params, MemoryLayout<offramp_model_params>.size))
        let box = progress.map { Box($0) }
        if let box {
            params.progress = onProgress
            params.progress_user_data = box.pointer
        }
        var handle: OpaquePointer?
        let status = withExtendedLifetime(box) {
            withOptionalCString(heads) { heads in
                params.heads_path = heads
                return offramp_model_load(path, &params, &handle)
            }
        }
        try check(status)
        self.handle = handle!
    }

    deinit { offramp_model_free(handle) }

    /// Architecture, size class and quantization.
    public var description: String {
        get throws {
            var info = offramp_model_info()
            try check(offramp_model_get_info(handle, &info, MemoryLayout<offramp_model_info>.size))
            return String(cString: info.description)
        }
    }
}

/// How tokens are picked; a temperature of 0 is greedy.
public final class Sampler: @unchecked Sendable {
    let handle: OpaquePointer

    public init(
        model: Model, temperature: Float = 0.8, topK: Int32 = 40, topP: Float = 0.95, minP: Float = 0.05,
        seed: UInt32? = nil, grammar: String? = nil
    ) throws {
        var params = offramp_sampler_params()
        try check(offramp_sampler_default_params(&params, MemoryLayout<offramp_sampler_params>.size))
        params.temperature = temperature
        params.top_k = topK
        params.top_p = topP
        params.min_p = minP
        params.use_seed = seed == nil ? 0 : 1
        params.seed = seed ?? 0
        var handle: OpaquePointer?
        let status = withOptionalCString(grammar) { grammar in
            params.grammar = grammar
            return offramp_sampler_new(model.handle, &params, &handle)
        }
        try check(status)
        self.handle = handle!
    }

    deinit { offramp_sampler_free(handle) }
}

/// Whether tokens may leave the model early.
public enum Exits: Int32, Sendable { case off, calibrated, exact }

/// Where the keys and values come from that an exit left out.
public enum KV: Int32, Sendable { case auto, predict, catchUp, propagate }

public struct Message: Sendable, Equatable {
    public var role: String
    public var content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// Why a reply ended.
public enum StopReason: Int32, Sendable { case none, eos, length, stop, cancelled }

public struct Statistics: Sendable {
    public let stopReason: StopReason
    public let tokens: UInt64
    public let tokensPerSecond: Double
    /// Blocks of the model that ran for a token, on the average.
    public let meanDepth: Double
    public let promptReused: UInt64
    public let promptDecoded: UInt64
    public let draftAcceptance: Double
}

/// The C handle of a session, apart from the actor so that a cancel need not wait for the call it stops.
private final class SessionHandle: @unchecked Sendable {
    let pointer: OpaquePointer
    init(_ pointer: OpaquePointer) { self.pointer = pointer }
    deinit { offramp_session_free(pointer) }
    func cancel() { _ = offramp_session_cancel(pointer) }
}

/// A conversation on a model. The actor makes its calls one at a time.
public actor Session {
    private let handle: SessionHandle

    public init(
        model: Model, contextLength: UInt32 = 4096, threads: UInt32 = 0, exits: Exits = .calibrated, kv: KV = .auto,
        agreement: Float = 0.99
    ) throws {
        var params = offramp_session_params()
        try check(offramp_session_default_params(&params, MemoryLayout<offramp_session_params>.size))
        params.n_ctx = contextLength
        params.n_threads = threads
        params.exits = exits.rawValue
        params.kv = kv.rawValue
        params.agreement = agreement
        var pointer: OpaquePointer?
        try check(offramp_session_new(model.handle, &params, &pointer))
        handle = SessionHandle(pointer!)
    }

    /// Stops the reply in progress, as soon as a fraction of a token.
    public nonisolated func cancel() { handle.cancel() }

    /// The reply to `messages` in pieces. Ending the iteration early, or its task, cancels it.
    public nonisolated func reply(
        to messages: [Message], sampler: Sampler? = nil, maxTokens: UInt32 = 0
    ) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let task = Task.detached { [self] in
                do {
                    try await generate(messages, sampler, maxTokens) { text in
                        if case .terminated = continuation.yield(text) { return false }
                        return true
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { [handle] termination in
                if case .cancelled = termination {
                    handle.cancel()
                    task.cancel()
                }
            }
        }
    }

    private func generate(
        _ messages: [Message], _ sampler: Sampler?, _ maxTokens: UInt32, sink: @escaping Sink
    ) throws {
        try check(offramp_session_clear_cancel(handle.pointer))
        try check(withCMessages(messages) { offramp_session_set_chat(handle.pointer, $0, $0.count, nil, nil) })
        var params = offramp_generate_params()
        try check(offramp_generate_default_params(&params, MemoryLayout<offramp_generate_params>.size))
        params.max_tokens = maxTokens
        let box = Box<Sink>(sink)
        let status = withExtendedLifetime((box, sampler)) {
            offramp_session_generate(handle.pointer, sampler?.handle, &params, onToken, box.pointer)
        }
        try check(status)
    }

    /// About the last prompt and the last reply.
    public var statistics: Statistics {
        get throws {
            var found = offramp_statistics()
            try check(offramp_session_statistics(handle.pointer, &found, MemoryLayout<offramp_statistics>.size))
            return Statistics(
                stopReason: StopReason(rawValue: found.stop_reason) ?? .none, tokens: found.n_tokens,
                tokensPerSecond: found.tokens_per_second, meanDepth: found.mean_depth,
                promptReused: found.n_prompt_reused, promptDecoded: found.n_prompt_decoded,
                draftAcceptance: found.draft_acceptance)
        }
    }

    /// Writes the conversation and its cache to a file, whole or not at all.
    public func save(to path: String) throws { try check(offramp_session_save(handle.pointer, path)) }

    /// Goes on with what `save` wrote, on the same model.
    public func load(from path: String) throws { try check(offramp_session_load(handle.pointer, path)) }
}

/// The messages as C has them, for as long as `body` runs.
private func withCMessages<Result>(_ messages: [Message], _ body: ([offramp_message]) -> Result) -> Result {
    let texts = messages.map { (strdup($0.role), strdup($0.content)) }
    defer {
        for (role, content) in texts {
            free(role)
            free(content)
        }
    }
    return body(texts.map { offramp_message(role: $0.0, content: $0.1) })
}

private func withOptionalCString<Result>(_ text: String?, _ body: (UnsafePointer<CChar>?) -> Result) -> Result {
    guard let text else { return body(nil) }
    return text.withCString(body)
}
