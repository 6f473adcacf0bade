// Says what is wrong, and ends: for programs that have nothing to add to it.
#pragma once
#include "twins.h"

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    exit(1);
}
