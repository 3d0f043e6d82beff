/* Runs a piece of code that the emulated GPU must report and stop, in a process of its own. */
#ifndef II_EMULATED_DEATH_H
#define II_EMULATED_DEATH_H
#include <functional>
#include <string>

/* What the code wrote to the standard error stream before it was aborted; "" when it was not. */
std::string report_of(const std::function<void()> &code);
/* Fails the test unless the code is stopped by a report that contains `words`. */
void expect_report(const char *words, const std::function<void()> &code);

#endif
