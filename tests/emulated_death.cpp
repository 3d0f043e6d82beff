#include "emulated_death.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <cmocka.h>
}

std::string report_of(const std::function<void()> &code) {
  int ends[2], status = 0;
  std::string text;
  fflush(NULL);
  if (pipe(ends)) return "";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    signal(SIGABRT, SIG_DFL);
    alarm(60);
    code();
    _exit(0);
  }
  close(ends[1]);
  char piece[4096];
  ssize_t n;
  while ((n = read(ends[0], piece, sizeof piece)) > 0) text.append(piece, (size_t)n);
  close(ends[0]);
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT ? text : "";
}

void expect_report(const char *words, const std::function<void()> &code) {
  const std::string text = report_of(code);
  if (text.find(words) == std::string::npos)
    fail_msg("no report with the words \"%s\", but: %s", words, text.c_str());
}
