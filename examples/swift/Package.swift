// swift-tools-version:5.9
import PackageDescription

// The library itself comes from pkg-config on Linux and macOS (`cargo cinstall -p offramp-c`), and from the xcframework that
// scripts/build-ios makes in an app: then this is `.binaryTarget(name: "COfframp", path: "Offramp.xcframework")`.
let package = Package(
    name: "Offramp",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Offramp", targets: ["Offramp"])],
    targets: [
        .systemLibrary(name: "COfframp", pkgConfig: "offramp"),
        .target(name: "Offramp", dependencies: ["COfframp"]),
        .executableTarget(name: "Chat", dependencies: ["Offramp"]),
    ]
)
