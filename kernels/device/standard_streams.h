// Standard input, output and error: what a program may count on, and what it owes its caller.
#pragma once

#include <string>
#include <string_view>

namespace lathe {

// Takes the places 0, 1 and 2 where they are closed, so that no file that is opened later becomes
// what others print to. Reading from them and writing to them still fails. Call it first of all.
void open_standard_streams();

// What a program is run for: all of it goes to stdout at once, or CheckError says why not.
void write_out(std::string_view text);

// write_out for text of others: made printable if stdout is a terminal, as it is if not.
void print_out(std::string_view text);

// A line beside what a program is run for, as print_out; errors of writing are ignored.
void note_out(std::string_view text);

// CheckError if something that was written to stdout or std::cout did not get there.
void finish_out();

// One line on stderr: made printable, not longer than a few lines, ended by a newline. Errors of
// writing are ignored: the exit code must do.
void say(std::string_view sentence) noexcept;

}  // namespace lathe
