// A chat on a terminal: `Chat MODEL [MAX_TOKENS]`, greedy, one turn a line.
import Foundation

let arguments = CommandLine.arguments
guard arguments.count > 1 else {
    FileHandle.standardError.write(Data("usage: \(arguments[0]) MODEL [MAX_TOKENS]\n".utf8))
    exit(2)
}
let maxTokens = arguments.count > 2 ? UInt32(arguments[2]) ?? 512 : 512

let engine = ChatEngine()
await engine.open(path: arguments[1], contextLength: 0, temperature: 0)
while engine.state == .ready, let line = readLine() {
    await engine.send(line, maxTokens: maxTokens) { piece in
        FileHandle.standardOutput.write(Data(piece.utf8))
    }
    // Not `print`, whose buffer would let the pieces overtake it where the output is a file.
    FileHandle.standardOutput.write(Data("\n".utf8))
}
if case .failed(let reason) = engine.state {
    FileHandle.standardError.write(Data("chat: \(reason)\n".utf8))
    exit(1)
}
