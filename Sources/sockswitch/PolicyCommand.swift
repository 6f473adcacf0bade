import ArgumentParser
import ControlPlane
import Glibc

struct PolicyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "policy",
        abstract: "Work with policy files.",
        discussion: """
            A policy says which connections may leave TCP. One rule a line, the first that matches decides, and what \
            none matches is allowed:

              # redis may, but not on the old cluster's ports
              tcp    program=redis*  port=7000-7005
              allow  program=redis*
              # nothing else over IPv4, nothing over IPv6 to the lab
              tcp    address=0.0.0.0/0
              tcp    address=[2001:db8::]/32

            A line `wildcard = per-interface` gives a program that listens on all addresses one companion for each address \
            that a provider serves, instead of one for all of them (`wildcard = any`, the standard).

            Keys: program=GLOB (the name, at most 15 bytes, * is the only wildcard), address=ADDRESS[/PREFIX], \
            port=N or N-M; in any order, missing means any. At most 64 rules.

              sockswitch policy check cluster.policy
              sockswitch run --policy cluster.policy -- redis-server
            """,
        subcommands: [Check.self])

    struct Check: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Check a policy file.",
            discussion: """
                Prints the first error as FILE:LINE:COLUMN with the line itself, and ends with status 65.

                  sockswitch policy check cluster.policy
                """)

        @Argument(help: ArgumentHelp("The policy file.", valueName: "file"))
        var file: String

        @Flag(help: "Print the form that the library reads.")
        var compiled = false

        func run() throws {
            do throws(PolicyError) {
                let policy = try PolicyFile(parsing: try readPolicy(file), source: file)
                print(compiled ? policy.compiled : "\(file): \(policy.rules.count) rule\(policy.rules.count == 1 ? "" : "s"), no error")
            } catch {
                printError("\(error)")
                throw ExitCode(EX_DATAERR)
            }
        }
    }
}
