#include "src/io/console.h"

#include <fcntl.h>
#include <pty.h>

#include <cmath>
#include <cstdlib>

#include "kernels/device/error.h"
#include "kernels/device/standard_streams.h"
#include "src/io/json_text.h"
#include "tests/io/scratch.h"

namespace lathe {
namespace {

StepMetrics sample(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss = 2.47901;
  metrics.lr = 6e-4;
  metrics.grad_norm = 0.531;
  metrics.dt_ms = 12.34;
  metrics.tokens_per_second = 62410;
  metrics.mfu = 0.1212;
  return metrics;
}

TEST(StepLine, ShowsWhatWasMeasured) {
  EXPECT_EQ(step_line(sample(100), 2000, 23.4),
            "step 100/2000 | loss 2.4790 | lr 6.00e-04 | norm 0.53 | 12.3 ms | 62.4k tok/s | "
            "mfu 12.1% | eta 00:23");
  StepMetrics validation;
  validation.step = 5;
  validation.val_loss = 1.5;
  EXPECT_EQ(step_line(validation, 10), "step 5/10 | val 1.5000");
  validation.loss = std::nan("");
  EXPECT_EQ(step_line(validation, 10), "step 5/10 | loss nan | val 1.5000");
}

TEST(StepLine, DropsWholePartsUntilItFits) {
  const std::string whole = step_line(sample(100), 2000, 23.4);
  const auto line = [](int columns) { return step_line(sample(100), 2000, 23.4, columns); };
  EXPECT_EQ(line(static_cast<int>(whole.size())), whole);
  const std::pair<int, const char*> narrower[] = {
      {96,
       "step 100/2000 | loss 2.4790 | lr 6.00e-04 | norm 0.53 | 62.4k tok/s | mfu 12.1% | "
       "eta 00:23"},
      {79, "step 100/2000 | loss 2.4790 | norm 0.53 | 62.4k tok/s | mfu 12.1% | eta 00:23"},
      {70, "step 100/2000 | loss 2.4790 | norm 0.53 | 62.4k tok/s | eta 00:23"},
      {60, "step 100/2000 | loss 2.4790 | 62.4k tok/s | eta 00:23"},
      {50, "step 100/2000 | loss 2.4790 | eta 00:23"},
      {30, "step 100/2000 | loss 2.4790"},
      {20, "step 100/2000 | loss"},
      {1, "s"}};
  for (const auto& [columns, expected] : narrower) EXPECT_EQ(line(columns), expected) << columns;
  for (int columns = 1; columns < 120; ++columns) EXPECT_LE(display_width(line(columns)), columns);
}

TEST(ShortNumber, NeverHasFourDigitsBeforeThePoint) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(999), "999");
  EXPECT_EQ(short_number(999.6), "1.0k");
  EXPECT_EQ(short_number(62410), "62.4k");
  EXPECT_EQ(short_number(999949), "999.9k");
  EXPECT_EQ(short_number(999950), "1.0M");
  EXPECT_EQ(short_number(1.26e9), "1.3G");
  EXPECT_EQ(short_number(5e15), "5000.0T");
}

TEST(ShortTime, CountsUpToDays) {
  EXPECT_EQ(short_time(0), "00:00");
  EXPECT_EQ(short_time(59.6), "01:00");
  EXPECT_EQ(short_time(3599), "59:59");
  EXPECT_EQ(short_time(3723), "1:02:03");
  EXPECT_EQ(short_time(2 * 86400 + 3723), "2d 01:02:03");
  EXPECT_EQ(short_time(-1), "?");
  EXPECT_EQ(short_time(std::nan("")), "?");
  EXPECT_EQ(short_time(INFINITY), "?");
}

TEST(DisplayWidth, CountsColumns) {
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("läufe"), 5);
  EXPECT_EQ(display_width("漢字"), 4);
  EXPECT_EQ(display_width("e\u0301"), 1);
  EXPECT_EQ(display_width("a\xff\n"), 3);
}

TEST(ClipToWidth, NeverCutsACharacter) {
  const std::string text = "a漢é\u0301😀z";
  EXPECT_EQ(clip_to_width(text, 0), "");
  EXPECT_EQ(clip_to_width(text, 2), "a");  // 漢 needs two columns
  EXPECT_EQ(clip_to_width(text, 3), "a漢");
  EXPECT_EQ(clip_to_width(text, 4), "a漢é\u0301");
  EXPECT_EQ(clip_to_width(text, 5), "a漢é\u0301");
  EXPECT_EQ(clip_to_width(text, 6), "a漢é\u0301😀");
  EXPECT_EQ(clip_to_width(text, 100), text);
}

TEST(Printable, TakesCommandsAndBrokenBytesOut) {
  EXPECT_EQ(printable("é漢\n\t"), "é漢\n\t");
  EXPECT_EQ(printable("\x1b[2J\r\x07"), "?[2J??");
  EXPECT_EQ(printable("a\xff\xe6\xbc"), "a\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(printable("\u009b"), "?");  // the one-character CSI
  EXPECT_EQ(printable(std::string(1, '\0')), "?");
}

TEST(Shortened, KeepsBothEndsAndWholeCharacters) {
  EXPECT_EQ(shortened("abc", 3), "abc");
  EXPECT_EQ(shortened(std::string(50, 'a') + std::string(50, 'b'), 25),
            std::string(15, 'a') + " ... " + "bbbbb");
  std::string accents;
  for (int i = 0; i < 100; ++i) accents += "漢";
  for (size_t most = 6; most < 40; ++most) {
    const std::string shorter = shortened(accents, most);
    EXPECT_LE(shorter.size(), most);
    EXPECT_EQ(printable(shorter), shorter) << most;  // no character is broken
  }
  EXPECT_LE(shortened(std::string(100, '\x80'), 20).size(), 20u);
}

TEST(JsonQuoted, IsShortAndHarmless) {
  EXPECT_EQ(json_quoted("wte.weight"), "\"wte.weight\"");
  EXPECT_EQ(json_quoted("\x1b[2J\n\xff"), "\"\\u001b[2J\\n\\ufffd\"");
  const std::string huge = json_quoted("begin" + std::string(50 << 20, 'x') + "end");
  EXPECT_LT(huge.size(), 150u);
  EXPECT_TRUE(huge.starts_with("\"beginx") && huge.ends_with("xend\"")) << huge;
}

// Runs `speak` with stderr in a file, and returns what it wrote.
std::string said(const std::function<void()>& speak) {
  const Scratch scratch;
  const int kept = ::dup(2);
  const int fd = ::open((scratch / "err").c_str(), O_WRONLY | O_CREAT, 0600);
  ::dup2(fd, 2);
  speak();
  ::dup2(kept, 2);
  ::close(fd);
  ::close(kept);
  return slurp(scratch / "err");
}

TEST(Say, WritesOneShortLineThatCommandsNothing) {
  EXPECT_EQ(said([] { say("x: \x1b[2Ja\nb\xff"); }), "x: ?[2Ja?b\uFFFD\n");
  const std::string line =
      said([] { say("FILE holds " + std::string(50 << 20, 'x') + "; do this"); });
  EXPECT_LE(line.size(), 2001u);
  EXPECT_TRUE(line.starts_with("FILE holds xxx") && line.ends_with("xxx; do this\n"));
  EXPECT_EQ(
      said([] { run_main("prog", []() -> int { throw UserError("{}: no\r\x1b[A", "\x07"); }); }),
      "prog: ?: no??[A\n");
}

TEST(FormatTable, AlignsByColumns) {
  EXPECT_EQ(format_table({{"lr", "0.1"}, {"größe", "2"}, {"", ""}}),
            "  lr     0.1\n  größe  2\n         \n");
  EXPECT_EQ(format_table({}), "");
}

// A console on a file, with a clock that the test moves.
class Recorded {
 public:
  Recorded(bool live, int64_t log_interval, int columns = 200) {
    fd_ = ::open((scratch_ / "out").c_str(), O_WRONLY | O_CREAT, 0600);
    console_.emplace(ConsoleOptions{.fd = fd_,
                                    .live = live,
                                    .columns = columns,
                                    .log_interval = log_interval,
                                    .redraw_seconds = 0.1,
                                    .clock = [this] { return now; }});
  }
  ~Recorded() {
    console_.reset();
    ::close(fd_);
  }
  Console& console() { return *console_; }
  std::string text() { return slurp(scratch_ / "out"); }
  std::string text_at_end() {
    console_.reset();
    return text();
  }

  double now = 100;

 private:
  Scratch scratch_;
  int fd_;
  std::optional<Console> console_;
};

TEST(Console, InAPipeWritesPlainLinesEveryInterval) {
  Recorded out(false, 10);
  for (int step = 1; step <= 25; ++step, out.now += 2) {
    StepMetrics metrics;
    metrics.step = step;
    out.console().step(metrics, 25);
  }
  EXPECT_EQ(out.text_at_end(),
            "step 1/25\nstep 10/25 | eta 00:30\nstep 20/25 | eta 00:10\nstep 25/25 | eta 00:00\n");
}

TEST(Console, AValidationAlwaysStays) {
  Recorded out(false, 10);
  StepMetrics metrics;
  metrics.step = 0;
  out.console().step(metrics, 100);
  metrics.step = 3;
  out.console().step(metrics, 100);
  metrics.val_loss = 2;
  out.console().step(metrics, 100);
  EXPECT_EQ(out.text(), "step 0/100\nstep 3/100 | val 2.0000 | eta 00:00\n");
}

TEST(Console, OnATerminalRedrawsOneLineAtMostTenTimesASecond) {
  Recorded out(true, 100);
  StepMetrics metrics;
  const auto show = [&](int step, double later) {
    out.now += later;
    metrics.step = step;
    out.console().step(metrics, 1000);
  };
  show(1, 0);
  show(2, 0.05);  // too soon
  show(3, 0.06);
  show(4, 0.05);  // too soon
  show(100, 0.01);
  show(101, 0.5);
  EXPECT_EQ(out.text_at_end(),
            "\rstep 1/1000\x1b[K\n"
            "\rstep 3/1000 | eta 00:55\x1b[K"
            "\rstep 100/1000 | eta 00:02\x1b[K\n"
            "\rstep 101/1000 | eta 00:06\x1b[K"
            "\rstep 101/1000 | eta 00:06\x1b[K\n");
}

TEST(Console, NoLineFillsTheTerminal) {
  Recorded out(true, 3, 20);
  for (int step = 1; step <= 3; ++step, out.now += 1) out.console().step(sample(step), 1000);
  EXPECT_EQ(out.text(),
            "\rstep 1/1000 | loss \x1b[K\n"
            "\rstep 2/1000 | loss \x1b[K"
            "\rstep 3/1000 | loss \x1b[K\n");
  Recorded plain(false, 1, 40);  // a terminal that cannot be redrawn
  plain.console().step(sample(1), 1000);
  EXPECT_EQ(plain.text(), "step 1/1000 | loss 2.4790 | eta 00:12\n");
}

TEST(Console, WithoutAnIntervalATerminalKeepsTheEndsAndAPipeEverything) {
  for (const bool live : {true, false}) {
    Recorded out(live, 0);
    StepMetrics metrics;
    for (int step = 1; step <= 4; ++step) {
      metrics.step = step;
      out.console().step(metrics, 4);
    }
    EXPECT_EQ(out.text_at_end(),
              live ? "\rstep 1/4\x1b[K\n\rstep 4/4 | eta 00:00\x1b[K\n"
                   : "step 1/4\nstep 2/4 | eta 00:00\nstep 3/4 | eta 00:00\nstep 4/4 | eta "
                     "00:00\n");
  }
}

TEST(Console, ALineThatWasNotDrawnYetStaysBeforeText) {
  Recorded out(true, 0);
  StepMetrics metrics;
  for (int step = 1; step <= 3; ++step) {  // the last two too soon to be drawn
    metrics.step = step;
    out.console().step(metrics, 10);
  }
  out.console().print("val");
  out.console().print("sample");
  EXPECT_EQ(out.text_at_end(), "\rstep 1/10\x1b[K\n\rstep 3/10 | eta 00:00\x1b[K\nval\nsample\n");
}

TEST(Console, TextGoesAboveTheLiveLine) {
  Recorded out(true, 100);
  StepMetrics metrics;
  metrics.step = 1;
  out.console().step(metrics, 10);
  metrics.step = 2;
  out.now += 1;
  out.console().step(metrics, 10);
  out.console().print("sample: é\x1b[31m");
  out.console().banner("lathe", {{"lr", "0.1"}});
  EXPECT_EQ(out.text_at_end(),
            "\rstep 1/10\x1b[K\n"
            "\rstep 2/10 | eta 00:08\x1b[K"
            "\rstep 2/10 | eta 00:08\x1b[K\n"
            "sample: é?[31m\n"
            "lathe\n  lr  0.1\n");
}

TEST(Console, FindsOutThatAFileIsNoTerminalAndOutlivesAClosedOne) {
  const Scratch scratch;
  const int fd = ::open((scratch / "out").c_str(), O_WRONLY | O_CREAT, 0600);
  Console console({.fd = fd});
  EXPECT_FALSE(console.live());
  ::close(fd);
  console.print("nobody looks");
}

// A pseudoterminal with this many columns; 0: unknown.
class Terminal {
 public:
  explicit Terminal(int columns) {
    const winsize size{.ws_row = 24, .ws_col = static_cast<unsigned short>(columns)};
    if (::openpty(&master_, &fd, nullptr, nullptr, &size) != 0) throw CheckError("no terminal");
  }
  ~Terminal() {
    ::close(fd);
    ::close(master_);
  }
  std::string text() {
    std::string piece(1 << 16, ' ');
    return piece.substr(0, static_cast<size_t>(::read(master_, piece.data(), piece.size())));
  }

  int fd = -1;

 private:
  int master_ = -1;
};

void set(const char* name, const char* value) {
  value ? ::setenv(name, value, 1) : ::unsetenv(name);
}

TEST(Terminals, AreRedrawnAndColouredAsTheEnvironmentAllows) {
  const Terminal terminal(80);
  struct Case {
    const char *term, *no_color;
    bool redraw, colour;
  };
  const Case cases[] = {{"xterm", nullptr, true, true},  {"xterm", "", true, true},
                        {"xterm", "1", true, false},     {"xterm", "0", true, false},
                        {"dumb", nullptr, false, false}, {"", nullptr, false, false},
                        {nullptr, nullptr, false, false}};
  for (const Case& c : cases) {
    set("TERM", c.term);
    set("NO_COLOR", c.no_color);
    EXPECT_EQ(can_redraw(terminal.fd), c.redraw) << c.term;
    EXPECT_EQ(can_colour(terminal.fd), c.colour) << c.term << c.no_color;
  }
  set("TERM", "xterm");
  set("NO_COLOR", nullptr);
  const Scratch scratch;
  const int file = ::open((scratch / "out").c_str(), O_WRONLY | O_CREAT, 0600);
  EXPECT_FALSE(can_redraw(file) || can_colour(file));
  EXPECT_EQ(terminal_columns(file), std::nullopt);
  ::close(file);
  EXPECT_EQ(terminal_columns(terminal.fd), 80);
  EXPECT_EQ(terminal_columns(Terminal(0).fd), std::nullopt);
}

TEST(Terminals, GiveTheConsoleItsWidth) {
  Terminal terminal(30), silent(0);
  set("TERM", "dumb");
  Console({.fd = terminal.fd}).step(sample(1), 1000);
  EXPECT_EQ(terminal.text(), "step 1/1000 | loss 2.4790\r\n");
  set("TERM", "xterm");
  Console({.fd = silent.fd}).step(sample(1), 1000);  // like mpirun's: its destination is unknown
  EXPECT_EQ(silent.text(), step_line(sample(1), 1000, 12.3) + "\r\n");
  Console({.fd = terminal.fd}).step(sample(1), 1000);
  EXPECT_EQ(terminal.text(), "\rstep 1/1000 | loss 2.4790\x1b[K\r\n");
}

TEST(Console, DoesNotWaitForAReaderWhoNeverComes) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  Console console({.fd = ends[1], .live = false, .patience_seconds = 0.01});
  const std::string line(100, 'x');
  for (int i = 0; i < 3000; ++i) console.print(line);  // far more than a pipe holds
  std::string text(1 << 20, ' ');
  size_t got = static_cast<size_t>(::read(ends[0], text.data(), text.size()));
  EXPECT_LT(got, 3000u * 101);
  EXPECT_GT(got, 4000u);
  console.print("back again");
  got = static_cast<size_t>(::read(ends[0], text.data(), text.size()));
  EXPECT_EQ(text.substr(0, got), "\n...\nback again\n");
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace lathe
